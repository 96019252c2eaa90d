//! The fuzzers' seeds, which are the catalogue's frames, and their corpus in the tree: of seeds and of what fuzzers made of them, the inputs
//! that reach different places. A crash becomes a file there with a name that says what it was.

use std::{fs, path::PathBuf};

use bulkhead_fixtures::{
    catalogue::{A, B, catalogue},
    skip,
};

use crate::{
    harness::{self, PLAIN},
    random::addressed,
};

/// Longer frames differ by their payload only.
const LONGEST: usize = 200;

/// Seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for entry in catalogue().into_iter().filter(|entry| entry.bytes().len() <= LONGEST) {
        let (name, frame) = (entry.name.replace('/', "-"), entry.bytes());
        if target == "packet" {
            seeds.push((name, frame));
            continue;
        }
        let judged = |frame: &[u8]| [&[0; PLAIN][..], frame].concat();
        // Turned round, so that the lab's endpoint gets what it otherwise sends.
        let back = addressed(frame.clone(), B, A, A.mac, 0);
        if back != frame && !name.starts_with("vxlan") {
            seeds.push((format!("{name}-back"), judged(&back)));
        }
        seeds.push((name, judged(&frame)));
    }
    seeds
}

const TARGETS: [(&str, fn(&[u8])); 2] = [("packet", harness::packet), ("verdict", harness::verdict)];

/// `BULKHEAD_SEEDS=DIRECTORY` writes them there, for a fuzzer to begin with: `DIRECTORY/packet` and `DIRECTORY/verdict`.
#[test]
fn seeds_are_survived() {
    let write = std::env::var_os("BULKHEAD_SEEDS").map(PathBuf::from);
    for (target, run) in TARGETS {
        for (name, seed) in seeds(target) {
            println!("{target}: {name}");
            if let Some(directory) = &write {
                fs::create_dir_all(directory.join(target)).unwrap();
                fs::write(directory.join(target).join(&name), &seed).unwrap();
            }
            run(&seed);
        }
    }
}

#[test]
fn the_corpus_is_survived() {
    for (target, run) in TARGETS {
        let directory: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fuzz/corpus", target].iter().collect();
        let mut count = 0;
        for file in fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            run(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 50, "{target}: only {count} files");
    }
}

#[test]
fn third_party_captures_are_survived() {
    let Some(data) = skip::test_data() else { return };
    let mut frames = 0;
    for captured in bulkhead_fixtures::captures(&data.join("captures")).unwrap() {
        let Some(frame) = captured.unwrap().ethernet() else { continue };
        harness::packet(&frame);
        // Not all of them: tables are built anew for each.
        if frames % if skip::long() { 1 } else { 50 } == 0 {
            harness::verdict(&[&[0; PLAIN][..], &addressed(frame, A, B, A.mac, 6)].concat());
        }
        frames += 1;
    }
    assert!(frames > 90_000, "only {frames} frames");
}
