//! The standard metrics of a process, under the names that dashboards use. They are read from /proc; on systems without
//! it they are absent.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// `USER_HZ`: /proc counts 100 ticks per second on every Linux, independent of the kernel's own rate
/// (proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads /proc at each scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut encode = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn Described| {
            metric.encode_with(&mut encoder, name, help, unit)
        };
        if let Some(bytes) = resident() {
            encode("process_resident_memory", "Resident memory", Some(&Unit::Bytes), &ConstGauge::new(bytes))?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
            encode("process_open_fds", "Open file descriptors", None, &ConstGauge::new(open))?;
        }
        if let Some((busy, started)) = times() {
            encode("process_cpu", "Processor time", Some(&Unit::Seconds), &ConstCounter::new(busy))?;
            encode(
                "process_start_time",
                "When the process started, in seconds since 1970",
                Some(&Unit::Seconds),
                &ConstGauge::new(started),
            )?;
        }
        Ok(())
    }
}

/// A metric that encodes its descriptor too.
trait Described {
    fn encode_with(&self, to: &mut DescriptorEncoder<'_>, name: &str, help: &str, unit: Option<&Unit>) -> fmt::Result;
}

impl<T: EncodeMetric> Described for T {
    fn encode_with(&self, to: &mut DescriptorEncoder<'_>, name: &str, help: &str, unit: Option<&Unit>) -> fmt::Result {
        self.encode(to.encode_descriptor(name, help, unit, self.metric_type())?)
    }
}

fn resident() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kib| kib * 1024)
}

/// Seconds of processor time, and when the process started in seconds since 1970.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process, in parentheses, can contain any character.
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    let field = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(((field(11)? + field(12)?) / TICKS_PER_SECOND, boot + field(19)? / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_time_are_read_from_proc() {
        assert!(resident().unwrap() > 1_000_000);
        let (busy, started) = times().unwrap();
        assert!((0.0..3600.0).contains(&busy) && started > 1.7e9, "{busy} {started}");
    }
}
