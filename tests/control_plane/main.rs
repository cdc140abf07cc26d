//! Three Pristine processes on two real API servers, without a node. Run by `hack/test rotation`.

#[path = "../common/mod.rs"]
mod common;

mod leadership;
mod rotation;
