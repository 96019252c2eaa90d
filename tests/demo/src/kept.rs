//! What `KEEP=1` leaves standing: how to look around in it, and how to remove it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use bulkhead_topology::{kept, remove_kept};

use crate::{shop::Shop, show};

/// One file for each kept demonstration, named like its topology; it holds the paths that are not in namespaces, one a line.
const RECORDS: &str = "/run/bulkhead-demo";

/// Leaves the shop standing when this process ends, and says how to look around.
pub(crate) fn leave(shop: Shop) -> Result<()> {
    let topology = &shop.lab.topology;
    let id = topology.id();
    let pins = shop.lab.pins(0).parent().map(Path::to_owned).unwrap_or_default();
    fs::create_dir_all(RECORDS)?;
    fs::write(Path::new(RECORDS).join(id), format!("{}\n{}\n", pins.display(), shop.directory().display()))?;

    show::say("Everything is still standing, agents included. To look around, in a shell as root:");
    show::say("");
    for (node, name) in topology.nodes().iter().zip(["n1", "n2"]) {
        show::command(&format!("{name}() {{ nsenter --net={} \"$@\"; }}", node.netns.path().display()), "");
    }
    let web = topology.workload("web");
    show::command(&format!("web() {{ nsenter --net={} \"$@\"; }}", web.netns.path().display()), "");
    let bulkhead = bulkhead_tests::bulkhead()?;
    show::command(&format!("bulkhead={}", bulkhead.display()), "");
    let of = format!("--pins {} --state {}", shop.lab.pins(0).display(), shop.lab.state(0).display());
    show::command(&format!("n1=\"{of}\""), "");
    show::say("");
    show::command("n1 $bulkhead status $n1", "what is in force on n1");
    show::command("n1 $bulkhead get flows $n1", "who talks to whom");
    show::command("n1 $bulkhead observe $n1", "what was blocked, and why");
    show::command("n1 curl -s http://127.0.0.1:9477/metrics", "metrics");
    show::command("n1 tcpdump -ni eth0 udp port 8472", "the overlay on the wire");
    let [db, cart] = ["db", "cart"].map(|name| topology.workload(name).v4);
    show::command(&format!("web timeout 1 bash -c '</dev/tcp/{db}/5432' || echo blocked"), "call db as web");
    show::command(&format!("web timeout 1 bash -c '</dev/tcp/{cart}/8080' && echo allowed"), "call cart as web");
    show::command(
        &format!("$EDITOR {}", shop.lab.policies().join(crate::shop::POLICY_FILE).display()),
        "both agents notice",
    );
    show::say("");
    show::command("make demo-clean", "removes it all");
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
    Ok(())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
