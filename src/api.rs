//! The Kubernetes API: one module for each kind of object that is read or written.

pub mod events;
pub mod owners;
pub mod pods;
