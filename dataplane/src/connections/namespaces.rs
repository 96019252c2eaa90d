//! Network namespaces by the ids that this one has for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink;

/// Where the kernel lists what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Those of the calling thread's namespace that have these ids, as far as a process runs in them or they are mounted somewhere, as `ip netns` and
/// container runtimes do.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn find(wanted: &BTreeSet<i32>) -> io::Result<BTreeMap<i32, File>> {
    let mut found = BTreeMap::new();
    // By their inodes: most processes share one.
    let mut seen = BTreeSet::new();
    for path in processes()?.into_iter().chain(mounts()?) {
        if found.len() == wanted.len() {
            break;
        }
        // A process may end, a mount go, at any moment.
        let Ok(file) = File::open(&path) else { continue };
        if !file.metadata().is_ok_and(|is| seen.insert((is.dev(), is.ino()))) {
            continue;
        }
        if let Some(id) = id(&file)?.filter(|id| wanted.contains(id)) {
            found.insert(id, file);
        }
    }
    Ok(found)
}

fn processes() -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            all.push(entry.path().join("ns/net"));
        }
    }
    Ok(all)
}

fn mounts() -> io::Result<Vec<PathBuf>> {
    Ok(fs::read_to_string(MOUNTS)?.lines().filter_map(mounted).collect())
}

/// Where a line of mountinfo has a network namespace.
fn mounted(line: &str) -> Option<PathBuf> {
    let (mount, source) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    (root.starts_with("net:[") && source.starts_with("nsfs ")).then(|| PathBuf::from(unescaped(place)))
}

/// Blanks and backslashes stand there as octal numbers: proc(5).
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

/// The id of a namespace, if it has one here.
fn id(namespace: &File) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
    let mut found = None;
    let request = RouteNetlinkMessage::GetNsId(message);
    netlink::exchange(NETLINK_ROUTE, request, NLM_F_REQUEST | NLM_F_ACK, |answer| {
        if let RouteNetlinkMessage::NewNsId(answer) = answer {
            found = answer.attributes.iter().find_map(|attribute| match attribute {
                // Below zero: it has none.
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            });
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_network_namespaces_are_told_from_others() {
        let line =
            |root: &str, place: &str, kind: &str| format!("45 28 0:4 {root} {place} rw shared:5 - {kind} nsfs rw");
        assert_eq!(mounted(&line("net:[4026532299]", "/run/netns/a", "nsfs")), Some(PathBuf::from("/run/netns/a")));
        assert_eq!(mounted(&line("net:[1]", "/run/my\\040own", "nsfs")), Some(PathBuf::from("/run/my own")));
        assert_eq!(mounted(&line("mnt:[4026532299]", "/run/a", "nsfs")), None);
        assert_eq!(mounted(&line("net:[4026532299]", "/run/a", "tmpfs")), None);
        assert_eq!(mounted("net:[1]"), None);
    }
}
