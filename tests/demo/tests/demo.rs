//! The demonstration runs, its verdicts are those of the policy, and nothing is left.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use bulkhead_fixtures::skip;
use bulkhead_topology::Process;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-demo"));
    command.env_remove("KEEP").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a demonstration makes outside of its own process: names in these directories, none of which another test makes as well.
fn traces(id: &str) -> Vec<String> {
    let directories = ["/run/netns", "/sys/fs/bpf", "/run/bulkhead-demo"];
    let entries = directories.into_iter().flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    entries.map(|entry| entry.path().display().to_string()).filter(|path| path.contains(id)).collect()
}

/// The network namespaces of this process's children: they tell which topology is whose.
fn topologies(pid: u32) -> BTreeSet<String> {
    let own = format!("bh-{pid}-");
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix(&own)?.split('-').next().map(str::to_owned)).collect()
}

#[test]
fn the_story_goes_as_the_policy_says_and_leaves_nothing() {
    if !skip::root() {
        return;
    }
    let child = demo().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(topologies(pid), BTreeSet::new());
    // In a file each of these is one line, without colours.
    for line in [
        "  BLOCKED web -> db 5432/tcp  at web's egress: web is isolated (shop.yaml:9) and may call cart:8080; db would refuse too (shop.yaml:17); \
         nearest rule cart -> db:5432 (shop.yaml:13), differs in: caller",
        "  ALLOWED web -> cart 8080/tcp  by shop: web calls cart:8080/tcp (shop.yaml:11)",
        "  BLOCKED web -> payments 9090/tcp  at web's egress: web is isolated (shop.yaml:9) and may call cart:8080; payments would refuse too \
         (shop.yaml:15); nearest rule cart -> payments:9090 (shop.yaml:13), differs in: caller",
        "  BLOCKED web -> metadata 80/tcp  at web's egress: denied by guard platform: deny to metadata (guard.yaml:6)",
        "  ALLOWED ops/backup -> shop/payments 9090/tcp  neither side is isolated; audit: would be blocked at shop/payments's ingress: \
         shop/payments is isolated (shop.yaml:15) and accepts cart:9090",
        "  ✓ these are the calls that pass and would be blocked, and no others",
        "  ✓ cart's connection is cut on its next packet",
        "  ALLOWED ops/backup -> shop/cart 8080/tcp  by guard repair: allow from ops/backup:8080/tcp (repair.yaml:7)",
        "  ✓ backup's connection is cut on its next packet",
        "  ✓ a forged VXLAN packet is dropped, and counted",
        "  ✓ on both nodes the sum of what was blocked equals the kernel's counters",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not a line of\n{text}");
    }
    assert!(
        text.contains(
            "bulkhead_underlay_packets_total{direction=\"ingress\",reason=\"unknown_vtep\",verdict=\"blocked\"} 2\n"
        ),
        "{text}"
    );
    assert!(!text.contains("WRONG") && !text.contains('\u{1b}'), "{text}");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: BTreeSet<String> = text.lines().map(words).collect();
    for line in excerpt().iter().map(|line| words(line)) {
        assert!(said.contains(&line), "README.md shows {line}\nwhich is not a line of\n{text}");
    }
}

/// The lines of what README.md shows of the story. Those that are wrapped there go on with ten spaces.
fn excerpt() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let block = readme.split("```").find(|block| block.contains("━━ 3 ━━")).expect("README.md has an excerpt");
    let mut lines: Vec<String> = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty() && line.trim() != "[...]") {
        match lines.last_mut() {
            Some(last) if line.starts_with("          ") => last.push_str(line),
            _ => lines.push(line.to_owned()),
        }
    }
    assert!(lines.len() > 10, "{lines:?}");
    lines
}

/// Waits for a line of what a child prints.
fn wait_for(child: &mut Child, wanted: &str) -> BufReader<std::process::ChildStdout> {
    let mut output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut text = String::new();
    while output.read_line(&mut text).unwrap() > 0 {
        if text.lines().last().is_some_and(|line| line.contains(wanted)) {
            return output;
        }
    }
    panic!("{wanted:?} is not in\n{text}");
}

#[test]
fn an_interrupted_story_leaves_nothing() {
    if !skip::root() {
        return;
    }
    let mut child = Process::from(demo().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    // The agents run and guard.
    let _output = wait_for(&mut child, "What still works");
    let ids = topologies(child.id());
    assert_eq!(ids.len(), 1, "{ids:?}");
    let id = ids.into_iter().next().expect("one");
    assert!(traces(&id).iter().any(|path| Path::new(path).starts_with("/sys/fs/bpf")), "something is pinned");
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn without_root_it_says_so() {
    if !skip::root() {
        return;
    }
    // Without any capability, whoever runs it.
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(env!("CARGO_BIN_EXE_bulkhead-demo"))
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("this needs root"), "{text}");
}
