//! The answer to one admission review: bytes → review → decision → mark → answer.

pub mod denials;
pub mod handler;
pub mod http;
pub mod marking;
pub mod path_guard;
mod report;
pub mod reported;
pub mod review;
pub mod validate;
pub mod writers;
