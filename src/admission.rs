//! The admission room: bytes → review → decision → mark → answer.

pub mod handler;
pub mod http;
pub mod review;
pub mod target;
pub mod turns;
