//! The steps, and their words in logs and metrics. Pure.

use jiff::Timestamp;

/// One step, which the controller executes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Create a CA without a predecessor, and write it to the Secret if the Secret has not changed since it was read.
    Create,
    /// Write the store in memory to the Secret.
    Restore,
    /// Create the next CA, and add it to the Secret.
    Stage,
    /// Write this caBundle into the webhook configuration, and the secret path if that is due.
    Publish(String),
    /// Accept the Secret although its generation is lower than what was published: no replica has a newer store.
    Adopt,
    /// Record in the Secret that every caBundle contains the next CA: the hold begins.
    BeginHold,
    /// Record that a caBundle no longer contains the next CA: the hold will restart.
    BreakHold,
    /// Let the next CA sign, and erase the key of the active one.
    Activate,
    /// Stop trusting the previous CAs.
    Retire,
    /// Add the key of the secret path to a Secret without one.
    AddPathKey,
    /// Issue a serving certificate, in memory.
    Issue,
    /// Delete the webhook configuration: soon no replica is left to answer, and every exec would be denied.
    Withdraw,
    /// Nothing to do before this time, unless something changes.
    Idle {
        /// When to plan again.
        until: Timestamp,
    },
}

impl Step {
    /// The step in one word, for logs and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Restore => "restore",
            Self::Adopt => "adopt",
            Self::Stage => "stage",
            Self::Publish(_) => "publish",
            Self::BeginHold => "begin_hold",
            Self::BreakHold => "break_hold",
            Self::Activate => "activate",
            Self::Retire => "retire",
            Self::AddPathKey => "add_path_key",
            Self::Issue => "issue",
            Self::Withdraw => "withdraw",
            Self::Idle { .. } => "idle",
        }
    }

    /// Whether the step depends on the time, and other replicas depend on it. A wrong clock must not take it.
    #[must_use]
    pub const fn needs_agreement(&self) -> bool {
        matches!(self, Self::Create | Self::Stage | Self::BeginHold | Self::Activate | Self::Retire)
    }
}

/// Every word of [`Step::as_str`] but `idle`, which changes nothing: the values of the metric's label.
pub const STEPS: [&str; 12] = [
    "create",
    "restore",
    "adopt",
    "stage",
    "publish",
    "begin_hold",
    "break_hold",
    "activate",
    "retire",
    "add_path_key",
    "issue",
    "withdraw",
];
