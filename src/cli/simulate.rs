//! `pristine simulate`: what rules would have done about the interactions in audit logs, before an installation.
//!
//! I/O: it reads files and prints. [`records`] and [`event`] read a log, [`fold`] makes one interaction of the records of
//! one request, [`summary`] counts, [`print`](mod@print) and [`suggest`] make the text. The files are read together, in
//! the order of time: each API server has a log of its own, and rotates it.
#![allow(clippy::print_stdout, reason = "the output of a command")]

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Write as _},
    path::Path,
};

use anyhow::Context as _;
use flate2::bufread::MultiGzDecoder;

use crate::{
    cli::args::{Output, Simulate},
    config::source::{Source, Text},
};
use event::{Decoded, Event};
use read::Read;
use records::Records;
use summary::Summary;
use workload::Pods;

pub mod cloud;
pub mod event;
pub mod fold;
pub mod print;
pub mod read;
pub mod recorded;
pub mod records;
pub mod suggest;
pub mod summary;
pub mod uri;
pub mod workload;

/// Bytes of a file that are read at once.
const BUFFER: usize = 256 * 1024;

/// Runs the command.
///
/// # Errors
/// When a file cannot be opened, or the rules or the pods cannot be read.
pub fn run(flags: &Simulate) -> anyhow::Result<()> {
    // Not the ConfigMap's file: there is no installation yet.
    let named = flags.config.clone().map(|path| Source::new(Some(path)).read());
    let text = named.transpose()?.unwrap_or_else(Text::built_in);
    let policy = text.parse()?.policy;
    let pods = flags.pods.as_deref().map(pods).transpose()?;
    let has_pods = pods.is_some();
    let mut summary = Summary::new(policy, pods.unwrap_or_default());
    let mut read = Read::default();
    let mut logs = flags.audit_log.iter().map(|path| Log::open(path, &mut read)).collect::<anyhow::Result<Vec<_>>>()?;
    // The oldest record of all files is the next.
    while let Some((event, log)) = logs
        .iter_mut()
        .filter_map(|log| Some((log.next.front()?.written, log)))
        .min_by_key(|(at, _)| *at)
        .and_then(|(_, log)| Some((log.next.pop_front()?, log)))
    {
        summary.add(event);
        log.fill(&mut read);
    }
    let (name, text) = (text.name(), text.content());
    let source = read.source(&summary, name, text, has_pods);
    let shown = match flags.output {
        Output::Table => print::table(&summary, &source),
        Output::Json => print::json(&summary, &source),
    };
    match io::stdout().lock().write_all(shown.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

fn pods(path: &Path) -> anyhow::Result<Pods> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Pods::parse(&text).with_context(|| {
        format!("{} is not a list of pods, as `kubectl get pods -A -o json` prints it", path.display())
    })
}

/// Opens a log, `-` for standard input, which may be compressed with gzip.
///
/// # Errors
/// If it cannot be read.
pub fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let name = path.display();
    let raw: Box<dyn io::Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot read {name}"))?)
    };
    let mut raw = BufReader::with_capacity(BUFFER, raw);
    let start = raw.fill_buf().with_context(|| format!("cannot read {name}"))?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(raw)))
    } else {
        Box::new(raw)
    })
}

/// A file, and its next interactions.
struct Log {
    name: String,
    records: Records<Box<dyn BufRead>>,
    next: VecDeque<Event>,
}

impl Log {
    fn open(path: &Path, read: &mut Read) -> anyhow::Result<Self> {
        let (name, input) = (path.display().to_string(), open(path)?);
        let mut log = Self { name, records: Records::new(input), next: VecDeque::new() };
        log.fill(read);
        Ok(log)
    }

    /// Reads on until there is an interaction, or the file ends.
    fn fill(&mut self, read: &mut Read) {
        while self.next.is_empty() {
            let Some(record) = self.records.read() else {
                read.too_long += std::mem::take(&mut self.records.too_long);
                if let Some(error) = self.records.error.take() {
                    read.broken.push(format!("{}: {error}", self.name));
                }
                return;
            };
            event::decode(record, &mut |decoded| {
                read.records += 1;
                match decoded {
                    Decoded::Event(event) => self.next.push_back(*event),
                    Decoded::Other => read.other += 1,
                    Decoded::NotAnEvent => read.not_audit += 1,
                    Decoded::NotJson => read.not_json += 1,
                }
            });
        }
    }
}
