//! What `KEEP=1` leaves standing: how to look around in it, and how to remove it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use bulkhead_topology::{Netns, kept, remove_kept};

use crate::{
    service,
    shop::{POLICY_FILE, Shop},
    show,
};

/// One file for each kept demonstration, named like its topology; it holds the paths that are not in namespaces, one a line.
const RECORDS: &str = "/run/bulkhead-demo";

/// Leaves the shop standing when this process ends, and says how to look around.
pub(crate) fn leave(shop: Shop) -> Result<()> {
    let topology = &shop.lab.topology;
    let id = topology.id();
    let pins = shop.lab.pins(0).parent().map(Path::to_owned).unwrap_or_default();
    fs::create_dir_all(RECORDS)?;
    fs::write(Path::new(RECORDS).join(id), format!("{}\n{}\n", pins.display(), shop.directory().display()))?;

    let enter = |name: &str, netns: &Netns| format!("{name}() {{ nsenter --net={} \"$@\"; }}", netns.path().display());
    let own = format!("--socket {}", shop.lab.socket(0).display());
    let call = |who: &str, name: &str, port: u16| {
        let address = shop.party(name).addresses[0];
        format!("{who} timeout 1 bash -c '</dev/tcp/{address}/{port}' && echo yes || echo no")
    };
    show::blank();
    show::say("It is all still standing, agents included. To look around, in a shell as root:");
    show::commands(&[
        (enter("n1", &topology.node(0).netns), ""),
        (enter("n2", &topology.node(1).netns), ""),
        (enter("web", &topology.workload("web").netns), ""),
        (enter("cart", &topology.workload("cart").netns), ""),
        (format!("bulkhead() {{ n1 {} \"$@\" {}; }}", bulkhead_tests::bulkhead()?.display(), own), ""),
    ]);
    show::blank();
    show::commands(&[
        ("bulkhead status".to_owned(), "what is in force on n1"),
        ("bulkhead get rules".to_owned(), "each rule, its line, and what it decided"),
        ("bulkhead observe".to_owned(), "who talked to whom, what was blocked, and why"),
        ("n1 curl -s http://127.0.0.1:9477/metrics".to_owned(), "metrics"),
        ("n1 tcpdump -ni eth0 udp port 8472".to_owned(), "the overlay on the wire"),
        ("n1 nft list table ip kube-proxy".to_owned(), "payments' service address"),
        (call("web", "cart", 8080), "allowed"),
        (call("web", "db", 5432), "blocked"),
        (call("cart", service::NAME, service::PORT), "allowed"),
        (call("web", service::NAME, service::PORT), "blocked"),
        (format!("$EDITOR {}", shop.lab.policies().join(POLICY_FILE).display()), "both agents notice"),
        ("make demo-clean".to_owned(), "removes it all"),
    ]);
    // Nothing of it is dropped: processes run on, and namespaces, pins and files stay.
    std::mem::forget(shop);
    Ok(())
}

/// Removes every kept demonstration.
pub(crate) fn clean() -> Result<()> {
    let mut ids = kept();
    let records = fs::read_dir(RECORDS).into_iter().flatten().flatten();
    ids.extend(records.filter_map(|entry| entry.file_name().into_string().ok()));
    if ids.is_empty() {
        show::say("nothing was left standing");
    }
    for id in ids {
        // First the processes, so that nobody writes what is removed; links and rules go with their namespaces.
        let names = remove_kept(&id);
        let record = Path::new(RECORDS).join(&id);
        let paths = fs::read_to_string(&record).unwrap_or_default();
        for path in paths.lines().map(PathBuf::from) {
            gone(fs::remove_dir_all(&path)).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        gone(fs::remove_file(&record)).with_context(|| format!("cannot remove {}", record.display()))?;
        show::check(
            &format!("removed {id}: {} network namespaces, their processes, pins and files", names.len()),
            true,
        );
    }
    // It stays when another demonstration was kept just now.
    let _ = fs::remove_dir(RECORDS);
    Ok(())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
