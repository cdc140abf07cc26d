//! The plugin as krew installs it.
