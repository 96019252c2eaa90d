//! `bulkhead detach --all`: a node is what it was before an agent came, with the agent dead, whatever became of its state.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, bulkhead};

use crate::{
    foreign::Others,
    listing::{changes, listing},
    policy::shop,
    probe::{Ask, Servers, allowed, denied},
};

fn run(mut command: Command, lab: &Lab, state: &Path, words: &[&str]) -> (Output, String) {
    let command = command.arg("detach").args(words).arg("--pins").arg(lab.pins(0)).arg("--state").arg(state);
    let output = command.output().unwrap();
    // Errors are set in lines of a terminal's width.
    let said = String::from_utf8_lossy(&output.stderr).replace('│', " ");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    (output, said)
}

fn program(lab: &Lab) -> Command {
    lab.topology.node(0).netns.command(bulkhead().unwrap())
}

/// Takes everything away; what was said beside.
#[track_caller]
pub(crate) fn detach_all(lab: &Lab, state: &Path) -> String {
    let (output, said) = run(program(lab), lab, state, &["--all"]);
    assert!(output.status.success(), "{said}");
    said
}

/// What became of the state directory on the worst day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Corrupt,
    Gone,
    /// The disk is full.
    Full,
}

#[test]
fn a_node_is_what_it_was() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers = Servers::start(&lab, "cart-1", &[], &[5300]);
    let _others = Others::install(&lab);
    // The directory of the pins alone is the agent's.
    fs::create_dir_all(lab.pins(0).parent().unwrap()).unwrap();
    let (state, elsewhere) = (lab.state(0), tempfile::tempdir().unwrap());
    let before = listing(&lab, 0);
    for (arguments, became) in [
        ([].as_slice(), State::Good),
        (&["--xdp", "generic"], State::Corrupt),
        (&["--xdp", "native"], State::Full),
        (&["--mark-mask", "0x0fff0000"], State::Gone),
    ] {
        Agent::start(&lab, 0, arguments).unwrap().kill().unwrap();
        denied(&lab, "guest", "cart-1", Ask::Udp(5300));
        let guarded = listing(&lab, 0);
        let changed = changes(&before, &guarded);
        for place in ["TcxIngress", "TcxEgress", "nft", "bpffs"] {
            assert!(changed.contains(&format!("{place} ")) || changed.contains(&format!("{place}:")), "{changed}");
        }
        assert_eq!(changed.contains("prog/xdp"), arguments.contains(&"--xdp"), "{changed}");

        let (refused, said) = run(program(&lab), &lab, &state, &[]);
        assert!(!refused.status.success() && said.contains("nothing was done"), "{said}");
        assert!(said.contains("detach --all") && said.contains("bypass --for"), "{said}");
        assert!(said.contains(&lab.topology.workload("cart-1").link.name), "{said}");
        assert_eq!(changes(&guarded, &listing(&lab, 0)).as_str(), "");

        let said = match became {
            State::Good => detach_all(&lab, &state),
            State::Corrupt => {
                let files: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).collect();
                assert!(files.iter().any(|file| file.ends_with("bulkhead.db")), "{files:?}");
                for file in files.iter().filter(|file| file.is_file()) {
                    fs::write(file, "{ no database").unwrap();
                }
                detach_all(&lab, &state)
            }
            State::Gone => {
                fs::remove_dir_all(&state).unwrap();
                detach_all(&lab, &state)
            }
            State::Full => {
                // A mount namespace of its own: what is mounted in it goes with it.
                let script = format!(
                    "mount -t tmpfs -o size=64k tmpfs {0} && ! dd if=/dev/zero of={0}/all bs=4k 2>/dev/null && exec \"$@\"",
                    elsewhere.path().display()
                );
                let mut command = lab.topology.node(0).netns.command("unshare");
                command.args(["--mount", "sh", "-c", &script, "sh"]).arg(bulkhead().unwrap());
                let (output, said) = run(command, &lab, elsewhere.path(), &["--all"]);
                assert!(output.status.success(), "{said}");
                said
            }
        };
        let recorded = !said.contains("could not be recorded");
        assert_eq!(recorded, became != State::Full, "{became:?}: {said}");
        assert_eq!(changes(&before, &listing(&lab, 0)).as_str(), "", "{arguments:?} {became:?}");
        allowed(&lab, "guest", "cart-1", Ask::Udp(5300));
        if state.exists() {
            fs::remove_dir_all(&state).unwrap();
        }
    }
    // There is nothing left to take away, which is what was asked for.
    detach_all(&lab, &state);
    assert_eq!(changes(&before, &listing(&lab, 0)).as_str(), "");
}

#[test]
fn nothing_is_detached_beside_an_agent() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let guarded = listing(&lab, 0);
    let (output, said) = run(program(&lab), &lab, &lab.state(0), &["--all"]);
    assert!(!output.status.success() && said.contains("an agent runs with these pins; stop it first"), "{said}");
    assert_eq!(changes(&guarded, &listing(&lab, 0)).as_str(), "");
    agent.kill().unwrap();
}
