//! The answer to one admission review: bytes → review → decision → mark → answer.

pub mod handler;
pub mod http;
pub mod marking;
mod report;
pub mod review;
pub mod secret_path;
pub mod validate;
pub mod writers;
