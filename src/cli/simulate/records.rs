//! The records of a file: its lines, or the elements of its JSON arrays. Pure: it reads only what it is given.
//!
//! A log has one record in each line. `aws logs … --output json` and `gcloud logging read --format=json` write one
//! document with an array of records, in many lines and of any size, so only one record is in memory.

use std::io::{BufRead, Error, Read};

/// Bytes of a record. The API server accepts requests of 3 MiB, and logs the request and the response.
const MAX_RECORD: usize = 16 * 1024 * 1024;

/// Reads the records of one file.
pub struct Records<R> {
    input: R,
    layout: Option<Layout>,
    buffer: Vec<u8>,
    /// Why the file ended early.
    pub error: Option<Error>,
    /// Records that were longer than any of an API server.
    pub too_long: u64,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Layout {
    Lines,
    Arrays,
}

impl<R: BufRead> Records<R> {
    /// Reads from `input`.
    pub const fn new(input: R) -> Self {
        Self { input, layout: None, buffer: Vec::new(), error: None, too_long: 0 }
    }

    /// The next record, or `None` at the end or at an error.
    pub fn read(&mut self) -> Option<&[u8]> {
        let found = match self.layout() {
            Ok(Layout::Lines) => self.line(),
            Ok(Layout::Arrays) => self.element(),
            Err(error) => Err(error),
        };
        match found {
            Ok(true) => Some(&self.buffer),
            Ok(false) => None,
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    fn layout(&mut self) -> Result<Layout, Error> {
        if let Some(layout) = self.layout {
            return Ok(layout);
        }
        let start: Vec<u8> = self.input.fill_buf()?.iter().take(256).copied().collect();
        let start = start.trim_ascii_start();
        let lists: [&[u8]; 4] = [b"{\"events\":", b"{\"logEvents\":", b"{\"kind\":\"EventList\"", b"["];
        let is_document = lists.iter().any(|list| start.starts_with(list))
            || start.starts_with(b"{\n")
            || start.starts_with(b"{\r\n");
        let layout = if is_document { Layout::Arrays } else { Layout::Lines };
        self.layout = Some(layout);
        Ok(layout)
    }

    /// The next line that is not blank.
    fn line(&mut self) -> Result<bool, Error> {
        loop {
            self.buffer.clear();
            // A longer line must not fill the memory.
            let limit = MAX_RECORD as u64 + 1;
            if (&mut self.input).take(limit).read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(false);
            }
            if self.buffer.len() > MAX_RECORD {
                self.too_long += 1;
                while self.buffer.last() != Some(&b'\n') {
                    self.buffer.clear();
                    if (&mut self.input).take(limit).read_until(b'\n', &mut self.buffer)? == 0 {
                        return Ok(false);
                    }
                }
                continue;
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// The next object of an array: from its `{` to the `}` that closes it.
    fn element(&mut self) -> Result<bool, Error> {
        self.buffer.clear();
        let (mut depth, mut is_string, mut is_escaped, mut is_long) = (0_usize, false, false, false);
        loop {
            let (mut used, mut is_done) = (0, false);
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                return Ok(false);
            }
            for &byte in bytes {
                used += 1;
                if depth > 0 {
                    if self.buffer.len() < MAX_RECORD {
                        self.buffer.push(byte);
                    } else {
                        is_long = true;
                    }
                }
                if is_string {
                    is_string = is_escaped || byte != b'"';
                    is_escaped = !is_escaped && byte == b'\\';
                    continue;
                }
                match byte {
                    b'"' => is_string = true,
                    b'{' if depth == 0 => {
                        depth = 1;
                        self.buffer.push(byte);
                    }
                    b'{' => depth += 1,
                    // The object around the array was no record.
                    b'[' if depth == 1 && is_list(&self.buffer) => {
                        depth = 0;
                        self.buffer.clear();
                    }
                    b'}' if depth == 1 => {
                        is_done = true;
                        break;
                    }
                    b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            self.input.consume(used);
            if is_done && is_long {
                self.too_long += 1;
                (depth, is_long) = (0, false);
                self.buffer.clear();
            } else if is_done {
                return Ok(true);
            }
        }
    }
}

/// Whether what was read of an object, up to a `[`, says that this array holds the records.
fn is_list(object: &[u8]) -> bool {
    let before = object.strip_suffix(b"[").unwrap_or(object).trim_ascii_end();
    let Some(before) = before.strip_suffix(b":") else { return false };
    let before = before.trim_ascii_end();
    ["\"events\"", "\"logEvents\"", "\"items\""].iter().any(|name| before.ends_with(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        // A small buffer: records and strings go across its end.
        let mut records = Records::new(std::io::BufReader::with_capacity(16, text.as_bytes()));
        // The first bytes decide, and a real buffer holds more of them.
        let mut whole = Records::new(text.as_bytes());
        records.layout = Some(whole.layout().unwrap());
        let mut found = Vec::new();
        while let Some(record) = records.read() {
            found.push(String::from_utf8_lossy(record.trim_ascii()).into_owned());
        }
        let mut again = Vec::new();
        while let Some(record) = whole.read() {
            again.push(String::from_utf8_lossy(record.trim_ascii()).into_owned());
        }
        assert_eq!(found, again);
        found
    }

    #[test]
    fn a_log_has_a_record_in_each_line() {
        assert_eq!(all("{\"a\": [1]}\n\n  \r\ncut\"}\n{\"b\": 2}"), ["{\"a\": [1]}", "cut\"}", "{\"b\": 2}"]);
        assert!(all("").is_empty());
    }

    #[test]
    fn an_export_in_one_document_has_a_record_in_each_element() {
        let one = r#"{"message": "{\"a\": \"[}\\\"\"}", "x": {"y": [1]}}"#;
        for text in [
            format!("[{one},{one}]"),
            format!("[\n  {one},\n  {one}\n]\n"),
            format!("{{\"events\":[{one},{one}],\"searchedLogStreams\":[]}}"),
            format!("{{\n  \"events\": [\n{one},\n{one}\n]\n}}"),
            format!("{{\"events\":[{one}]}}\n{{\"events\":[{one}]}}"),
            format!("{{\"kind\":\"EventList\",\"metadata\":{{}},\"items\":[{one},{one}]}}"),
        ] {
            let found: Vec<String> = all(&text).into_iter().filter(|it| it.contains("message")).collect();
            assert_eq!(found, [one, one], "{text}");
        }
    }

    #[test]
    fn a_record_that_is_longer_than_any_of_an_api_server_is_counted_and_not_kept() {
        let long = "x".repeat(MAX_RECORD + 10);
        let text = format!("{long}\n{{}}\n{long}");
        let mut records = Records::new(text.as_bytes());
        assert_eq!(records.read().map(<[u8]>::to_vec), Some(b"{}\n".to_vec()));
        assert_eq!(records.read(), None);
        assert_eq!(records.too_long, 2);

        let text = format!("[{{\"a\":\"{long}\"}},{{}}]");
        let mut records = Records::new(text.as_bytes());
        assert_eq!(records.read().map(<[u8]>::to_vec), Some(b"{}".to_vec()));
        assert_eq!(records.read(), None);
        assert_eq!(records.too_long, 1);
    }
}
