//! What every Prometheus client tells of its process, by the names that dashboards know. From /proc; elsewhere there is
//! nothing to tell.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// `USER_HZ`: the ticks of /proc, 100 a second on every Linux, whatever the kernel's own are (proc_pid_stat(5)).
const TICKS: f64 = 100.0;

/// Reads at each scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut tell = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn Told| {
            metric.tell(&mut encoder, name, help, unit)
        };
        if let Some(bytes) = resident() {
            tell("process_resident_memory", "Resident memory", Some(&Unit::Bytes), &ConstGauge::new(bytes))?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
            tell("process_open_fds", "Open file descriptors", None, &ConstGauge::new(open))?;
        }
        if let Some((busy, started)) = times() {
            tell("process_cpu", "Processor time", Some(&Unit::Seconds), &ConstCounter::new(busy))?;
            tell(
                "process_start_time",
                "Since when it runs, since 1970",
                Some(&Unit::Seconds),
                &ConstGauge::new(started),
            )?;
        }
        Ok(())
    }
}

/// A number with its kind.
trait Told {
    fn tell(&self, to: &mut DescriptorEncoder<'_>, name: &str, help: &str, unit: Option<&Unit>) -> fmt::Result;
}

impl<T: EncodeMetric> Told for T {
    fn tell(&self, to: &mut DescriptorEncoder<'_>, name: &str, help: &str, unit: Option<&Unit>) -> fmt::Result {
        self.encode(to.encode_descriptor(name, help, unit, self.metric_type())?)
    }
}

fn resident() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kib| kib * 1024)
}

/// Seconds of processor time, and when the process was started.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    let field = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(((field(11)? + field(12)?) / TICKS, boot + field(19)? / TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory_and_time() {
        assert!(resident().unwrap() > 1_000_000);
        let (busy, started) = times().unwrap();
        assert!((0.0..3600.0).contains(&busy) && started > 1.7e9, "{busy} {started}");
    }
}
