//! Shared by all commands: printing, failures, and `--dry-run`.

use std::io::{ErrorKind, IsTerminal as _, Write as _};

use clap::ValueEnum;
use kube::api::PatchParams;

use super::format;

/// kubectl's `--dry-run`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum DryRun {
    /// Make the change.
    #[default]
    None,
    /// Print what would be changed, without sending the change.
    Client,
    /// Send the change to the API server, which validates it and persists nothing.
    Server,
}

impl DryRun {
    /// The parameters of a change of an object.
    #[must_use]
    pub fn patch_params(self) -> PatchParams {
        PatchParams {
            dry_run: self == Self::Server,
            field_manager: Some("kubectl-pristine".to_owned()),
            ..PatchParams::default()
        }
    }

    /// kubectl's suffix for what was done.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The HTTP status if the API server answered, else 0.
    pub code: u16,
    /// For people: what was tried, why it failed, what to do.
    pub message: String,
}

impl Failure {
    /// A failure that is not an answer of the API server.
    #[must_use]
    pub const fn new(message: String) -> Self {
        Self { code: 0, message }
    }

    /// As kubectl prints it: an answer of the API server unchanged, every other failure after `error: `.
    #[must_use]
    pub fn show(&self) -> String {
        let message = format::plain(&self.message);
        if self.code == 0 { format!("error: {message}") } else { message }
    }
}

/// Writes to standard output. A closed pipe ends the program with exit code 0, because the reader has seen enough.
///
/// # Errors
/// If the write fails for another reason.
pub fn emit(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
    }
}

/// Writes a line to standard error.
pub fn emit_stderr(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether to print colours: standard output is a terminal that shows them, and `NO_COLOR` is not set.
#[must_use]
pub fn is_colourful() -> bool {
    let wants_colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A console of Windows prints escape sequences as characters, unless the program switches them on.
    wants_colours && (!cfg!(windows) || anstyle_query::windows::enable_ansi_colors() == Some(true))
}

/// Runs `action` for each name. A failure is printed and does not stop the names after it.
///
/// # Errors
/// The last failure; the earlier ones are already printed.
pub async fn each(
    names: &[String],
    mut action: impl AsyncFnMut(&str) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let mut last = Ok(());
    for name in names {
        match action(name).await {
            Ok(text) => emit(&text)?,
            Err(failure) => {
                if let Err(earlier) = std::mem::replace(&mut last, Err(failure)) {
                    emit_stderr(&earlier.show());
                }
            }
        }
    }
    last
}
