//! The query of a request for exec or attach: the command, the container and the streams. Pure.

use crate::{admission::review::Act, mark::Operation};

/// The interaction that the URI asks for.
#[must_use]
pub fn act(operation: Operation, uri: &str) -> Act {
    let mut act = Act { operation, container: String::new(), command: Vec::new(), stdin: false, tty: false };
    for (key, value) in query(uri) {
        match key.as_str() {
            "command" if operation == Operation::Exec => act.command.push(value),
            "ports" if operation == Operation::PortForward => act.command.push(value),
            "container" => act.container = value,
            "stdin" => act.stdin = is_true(&value),
            "tty" => act.tty = is_true(&value),
            _ => {}
        }
    }
    act
}

/// Whether the request is a dry run.
#[must_use]
pub fn is_dry_run(uri: &str) -> bool {
    query(uri).any(|(key, value)| key == "dryRun" && value == "All")
}

fn query(uri: &str) -> impl Iterator<Item = (String, String)> {
    let pairs = uri.split_once('?').map_or("", |(_, query)| query).split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    })
}

/// As `Convert_Slice_string_To_bool` of apimachinery reads a query parameter: all but `0` and `false` is true.
fn is_true(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = |digit: u8| (digit as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_has_the_command_the_container_and_the_streams() {
        let uri = "/api/v1/namespaces/n/pods/p/exec?command=sh&command=-c&command=echo+%22a%26b%22+%C3%A9&container=app\
                   &stderr=true&stdin=true&stdout=true&tty=true";
        let found = act(Operation::Exec, uri);
        assert_eq!(found.command, ["sh", "-c", "echo \"a&b\" é"]);
        assert_eq!((found.container.as_str(), found.stdin, found.tty), ("app", true, true));
    }

    #[test]
    fn streams_are_false_as_the_api_server_reads_them() {
        for (query, expected) in [
            ("", false),
            ("?tty=false", false),
            ("?tty=0", false),
            ("?tty=FALSE", false),
            ("?tty", true),
            ("?tty=1", true),
        ] {
            assert_eq!(act(Operation::Exec, &format!("/x{query}")).tty, expected, "{query}");
        }
    }

    #[test]
    fn an_escape_that_is_cut_or_wrong_is_kept_as_it_is() {
        for (query, expected) in [("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%41%", "A%"), ("%ff", "\u{fffd}")] {
            assert_eq!(act(Operation::Exec, &format!("/x?command={query}")).command, [expected], "{query}");
        }
    }

    #[test]
    fn attach_has_no_command_and_a_port_forward_has_its_ports() {
        assert!(act(Operation::Attach, "/x?command=a&ports=1").command.is_empty());
        assert_eq!(act(Operation::PortForward, "/x?command=a&ports=80&ports=81").command, ["80", "81"]);
    }

    #[test]
    fn only_dry_run_all_is_a_dry_run() {
        assert!(is_dry_run("/x?fieldManager=kubectl&dryRun=All") && !is_dry_run("/x?dryRun=") && !is_dry_run("/x"));
    }
}
