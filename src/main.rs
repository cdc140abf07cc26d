//! The `pristine` command.

use std::process::ExitCode;

use clap::Parser as _;
use pristine::{cli::args::Cli, run};

fn main() -> ExitCode {
    match run::main(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "a command line tool prints its error on stderr")]
            {
                eprintln!("pristine: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
