//! The program behind `kubectl pristine`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pristine::plugin::main(std::env::args_os().collect())
}
