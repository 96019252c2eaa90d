//! One record as a line.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Event;

/// Stands between what is hashed and the hash.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";
const AFTER_HASH: &[u8] = b"\"}";
/// Hex digits of a hash.
const HEX: usize = 64;

/// A record without its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) seq: u64,
    pub(super) time: String,
    #[serde(flatten)]
    pub(super) event: Event,
    /// Bytes before this line that are no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) torn: Option<TornBytes>,
    pub(super) prev: String,
}

/// What a crash has left between two records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TornBytes {
    /// Their number, with the newline that was put behind them.
    pub(super) bytes: u64,
    /// Their SHA-256.
    pub(super) sha256: String,
}

/// The line of a record, without newline, and its hash.
pub(super) fn write(record: &Record) -> serde_json::Result<(Vec<u8>, String)> {
    let mut line = serde_json::to_vec(record)?;
    // The brace that closes the record stands behind the hash.
    line.pop();
    let hash = sha256(&line);
    for part in [BEFORE_HASH, hash.as_bytes(), AFTER_HASH] {
        line.extend_from_slice(part);
    }
    Ok((line, hash))
}

/// Why a line is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoRecord {
    /// It does not end as a record does. A crash leaves such a line, and so does who cuts one.
    Cut,
    /// It ends as a record does, and is none: no crash makes that.
    Changed(String),
}

/// Reads a line, without its newline.
pub(super) fn read(line: &[u8]) -> Result<(Record, String), NoRecord> {
    let (hashed, hash) = split(line).ok_or(NoRecord::Cut)?;
    let actual = sha256(hashed);
    if actual.as_bytes() != hash {
        let said = String::from_utf8_lossy(hash);
        return Err(NoRecord::Changed(format!(
            "its bytes were changed: it says that its hash is {said}, and it is {actual}"
        )));
    }
    let mut json = hashed.to_vec();
    json.push(b'}');
    let record = serde_json::from_slice(&json);
    record
        .map(|record| (record, actual))
        .map_err(|error| NoRecord::Changed(format!("its hash is right, but it is no record: {error}")))
}

/// What is hashed, and the hash.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = line.strip_suffix(AFTER_HASH)?;
    let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(HEX)?)?;
    Some((rest.strip_suffix(BEFORE_HASH)?, hash))
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
