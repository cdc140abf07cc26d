//! What every command of the plugin prints and how it fails.

use std::io::{ErrorKind, IsTerminal as _, Write as _};

use clap::ValueEnum;

use super::format;

/// kubectl's `--dry-run`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum DryRun {
    /// Do it.
    #[default]
    None,
    /// Only say what would be done.
    Client,
    /// Ask the API server, which writes nothing.
    Server,
}

impl DryRun {
    /// After what was done.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// HTTP's, where the API server answered; else 0.
    pub code: u16,
    /// For people: what was tried, what was wrong, what to do.
    pub message: String,
}

impl Failure {
    /// One of our own.
    #[must_use]
    pub const fn new(message: String) -> Self {
        Self { code: 0, message }
    }

    /// As kubectl prints it: what the API server answered as it is, and all else after `error: `.
    #[must_use]
    pub fn show(&self) -> String {
        let message = format::plain(&self.message);
        if self.code == 0 { format!("error: {message}") } else { message }
    }
}

/// Writes to standard output; whoever stops reading ends the program, and that is no failure.
///
/// # Errors
/// When it cannot be written to.
pub fn emit(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
    }
}

/// To standard error.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether colours would be seen.
#[must_use]
pub fn is_colourful() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Does `one` for each name; what goes wrong with one is said, and does not keep the others waiting.
///
/// # Errors
/// The last failure, when all the others have been said.
pub async fn each(names: &[String], mut one: impl AsyncFnMut(&str) -> Result<String, Failure>) -> Result<(), Failure> {
    let mut last = Ok(());
    for name in names {
        match one(name).await {
            Ok(text) => emit(&text)?,
            Err(failure) => {
                if let Err(earlier) = std::mem::replace(&mut last, Err(failure)) {
                    complain(&Failure::show(&earlier));
                }
            }
        }
    }
    last
}
