//! What is in the repository fits together: the code's modules, the manifests.

mod layering;
mod manifests;
