//! Where a file ends: the last record, and what a crash has left behind it.

use super::{
    Head,
    line::{Record, TornBytes, read, sha256},
};

/// The end of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    /// The last line that is a record.
    pub(super) head: Option<Head>,
    /// What must be written before the next record: the newline that is missing.
    pub(super) newline: bool,
    /// What lies behind that record and is none, with that newline.
    pub(super) torn: Option<TornBytes>,
}

/// Only the last record is read with care: to check the chain is another's work.
pub(super) fn tail(bytes: &[u8]) -> Tail {
    let newline = bytes.last().is_some_and(|&last| last != b'\n');
    let mut end = bytes.len();
    while end > 0 {
        let line_end = if bytes[end - 1] == b'\n' { end - 1 } else { end };
        let start = bytes[..line_end].iter().rposition(|&byte| byte == b'\n').map_or(0, |before| before + 1);
        if let Ok((Record { seq, .. }, hash)) = read(&bytes[start..line_end]) {
            return Tail { head: Some(Head { seq, hash }), newline, torn: torn(&bytes[end..], newline) };
        }
        end = start;
    }
    Tail { head: None, newline, torn: torn(bytes, newline) }
}

fn torn(bytes: &[u8], newline: bool) -> Option<TornBytes> {
    if bytes.is_empty() {
        return None;
    }
    let mut bytes = bytes.to_vec();
    bytes.extend(newline.then_some(b'\n'));
    Some(TornBytes { bytes: bytes.len() as u64, sha256: sha256(&bytes) })
}
