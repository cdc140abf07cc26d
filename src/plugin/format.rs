//! Durations and tables as kubectl writes them. Pure.

use jiff::SignedDuration;

/// Spaces between two columns, as in kubectl.
const GAP: usize = 3;
/// Maximum padding of a cell, however long another cell of its column is.
const MAX_PADDING: usize = 200;

/// A duration in at most two units, as in kubectl's AGE (`HumanDuration` of k8s.io/apimachinery): the longer, the less
/// exact.
#[must_use]
pub fn duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// Rows under their headers, in columns as wide as their widest cell, without trailing spaces.
#[must_use]
pub fn table(header: &[&str], rows: &[impl AsRef<[String]>]) -> String {
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let header = Some(header).filter(|header| !header.is_empty());
    let rows = rows.iter().map(|row| row.as_ref().iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    let lines: Vec<Vec<String>> = header.into_iter().chain(rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let length = |cell: &String| cell.chars().count();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(length).max().unwrap_or(0) + GAP;
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        // Padded by hand, because the formatter panics over a width of more than 65,535.
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(length(cell)).min(MAX_PADDING))));
        text.push_str(padded.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

/// `text` with control characters and bidirectional marks escaped: users choose much of what is printed here, and a
/// terminal would obey it.
#[must_use]
pub fn plain(text: &str) -> String {
    let is_bad = |c: char| {
        c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    let escaped = |c: char| if is_bad(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// `words` on one line of at most `limit` characters.
#[must_use]
pub fn clip(words: &str, limit: usize) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= limit {
        return line;
    }
    line.chars().take(limit.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_kubectl_writes_them() {
        // From duration_test.go of k8s.io/apimachinery.
        for (seconds, text) in [
            (1, "1s"),
            (70, "70s"),
            (190, "3m10s"),
            (600, "10m"),
            (4200, "70m"),
            (47 * 60, "47m"),
            (180 * 60, "3h"),
            (200 * 60, "3h20m"),
            (9 * 3600, "9h"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (7 * 86_400 + 3600, "7d1h"),
            (9 * 86_400, "9d"),
            (2 * 365 * 86_400 + 86_400, "2y1d"),
            (10 * 365 * 86_400, "10y"),
            (-5, "0s"),
        ] {
            assert_eq!(duration(SignedDuration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_control_characters_are_escaped() {
        let rows = [["a".to_owned(), "long one".to_owned()], ["ünï".to_owned(), "b".to_owned()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     long one\nünï   b\n");
        assert_eq!(table(&[], &rows[..1]), "a   long one\n");
        assert_eq!(clip("a\nb  cde", 5), "a b …");
        let nasty = [["\u{1b}]0;x\u{7}".to_owned(), "b".to_owned()], ["x".repeat(70_000), "y\nz".to_owned()]];
        let shown = table(&[], &nasty);
        assert!(!shown.contains('\u{1b}') && shown.lines().count() == 2, "{}", &shown[..100]);
    }
}
