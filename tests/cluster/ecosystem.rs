//! Pristine with the programs that others install and keep it with, and beside the programs that others run on the same
//! cluster. Run by `hack/test ecosystem`, one by one: the programs are built from their own source (`hack/tools`), and some
//! tests watch for minutes.

mod beside;
mod gitops;
mod helm;
mod isolation;
mod krew;
