//! Capabilities and groups.

use std::collections::HashSet;

use bulkhead_dataplane::rights;
use caps::{CapSet, CapsHashSet, errors::CapsError};
use nix::unistd::{Gid, getegid, getgroups, setgroups};

use super::ConfineError;

/// Joins a group, since without CAP_CHOWN a file can be given to a group of one's own only.
pub(super) fn join(group: u32) -> Result<(), ConfineError> {
    let (group, refused) = (Gid::from_raw(group), |why| ConfineError::Group { group, why });
    let mut groups = getgroups().map_err(refused)?;
    if getegid() != group && !groups.contains(&group) {
        groups.push(group);
        setgroups(&groups).map_err(refused)?;
    }
    Ok(())
}

/// Takes everything that is not needed out of all five sets of this thread.
///
/// What the agent starts is root's as it is, and at its start gets what is both in the bounding set and in the agent's permitted set. So the inheritable
/// and the ambient set, which are for others than root, are left empty.
pub(super) fn shed() -> Result<(), ConfineError> {
    let needed = needed();
    let keeps = |error: CapsError| ConfineError::Keeps { what: "capabilities", why: error.to_string() };
    caps::clear(None, CapSet::Ambient).map_err(keeps)?;
    for capability in caps::read(None, CapSet::Bounding).map_err(keeps)?.difference(&needed) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(|error| ConfineError::Keeps {
            what: "capabilities",
            why: format!("{error}: leave CAP_SETPCAP to the agent too, or nothing but what it needs"),
        })?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(keeps)?;
    caps::set(None, CapSet::Effective, &needed).map_err(keeps)?;
    caps::set(None, CapSet::Permitted, &needed).map_err(keeps)?;
    // The library knows the capabilities of its day.
    for (set, expected) in [
        (CapSet::Permitted, &needed),
        (CapSet::Effective, &needed),
        (CapSet::Bounding, &needed),
        (CapSet::Inheritable, &HashSet::new()),
        (CapSet::Ambient, &HashSet::new()),
    ] {
        let is = caps::read(None, set).map_err(keeps)?;
        if is != *expected {
            let why = format!("{set:?} is {is:?} afterwards");
            return Err(ConfineError::Keeps { what: "capabilities", why });
        }
    }
    Ok(())
}

fn needed() -> CapsHashSet {
    caps::all()
        .into_iter()
        .filter(|capability| rights::NEEDED.iter().any(|right| right.number == capability.index()))
        .collect()
}

#[cfg(test)]
mod tests {
    use caps::Capability;

    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_the_library() {
        let named: CapsHashSet = rights::NEEDED.iter().map(|right| right.name.parse::<Capability>().unwrap()).collect();
        assert_eq!(named, needed());
        assert_eq!(named.len(), rights::NEEDED.len());
    }
}
