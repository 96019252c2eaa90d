//! Kernel, rights, programs and the place for pins.

use bulkhead_dataplane::{check::Facts, load::Rehearsal, rights};

use super::{AS_ROOT, Line};

/// The oldest kernel on which the programs were tried.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn judge(facts: &Facts) -> Vec<Line> {
    vec![rights(facts), release(facts), btf(facts), tcx(facts), programs(facts), jit(facts), pins(facts)]
}

fn rights(facts: &Facts) -> Line {
    const TOPIC: &str = "rights";
    match &facts.kernel.lacking {
        Ok(lacking) if lacking.is_empty() => Line::ok(TOPIC, rights::NEEDED.map(|right| right.name).join(", ")),
        Ok(lacking) => Line::problem(TOPIC, format!("this process lacks {}", lacking.join(", ")), AS_ROOT),
        Err(why) => Line::problem(TOPIC, why, "mount /proc (`mount -t proc proc /proc`)"),
    }
}

fn release(facts: &Facts) -> Line {
    const TOPIC: &str = "kernel";
    const REMEDY: &str = "Linux 6.6 or later";
    let release = match &facts.kernel.release {
        Ok(release) => release,
        Err(why) => return Line::warning(TOPIC, why, "mount /proc (`mount -t proc proc /proc`)"),
    };
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Line::ok(TOPIC, format!("Linux {release}")),
        (Some(Ok(_)), Some(Ok(_))) => {
            let (major, minor) = OLDEST;
            Line::warning(TOPIC, format!("Linux {release}: older than what was tried, {major}.{minor}"), REMEDY)
        }
        _ => Line::warning(TOPIC, format!("Linux {release}: no version can be read in this"), REMEDY),
    }
}

fn btf(facts: &Facts) -> Line {
    const TOPIC: &str = "BTF";
    if facts.kernel.btf {
        return Line::ok(TOPIC, "/sys/kernel/btf/vmlinux is there");
    }
    Line::warning(
        TOPIC,
        "/sys/kernel/btf/vmlinux is not there; the programs of this version read no structures of the kernel, so that only tools such as bpftool miss it",
        "a kernel with CONFIG_DEBUG_INFO_BTF, or mount /sys",
    )
}

fn tcx(facts: &Facts) -> Line {
    const TOPIC: &str = "TCX";
    match &facts.kernel.tcx {
        Ok(true) => Line::ok(TOPIC, "supported"),
        Ok(false) => Line::warning(
            TOPIC,
            "not supported (before Linux 6.6): the programs attach to a clsact qdisc",
            "Linux 6.6 or later; till then keep `ingress` qdiscs off the guarded links, which exclude clsact",
        ),
        Err(why) => Line::warning(TOPIC, why, AS_ROOT),
    }
}

fn programs(facts: &Facts) -> Line {
    const TOPIC: &str = "programs";
    match &facts.rehearsal {
        Ok(Rehearsal { programs, .. }) => Line::ok(
            TOPIC,
            format!("this kernel takes all {programs} and their tables (they were loaded, and are gone again)"),
        ),
        Err(why) => Line::problem(
            TOPIC,
            format!("this kernel does not take them: {why}"),
            "as root on Linux 6.6 or later, with enough memory in this control group (`ulimit -l unlimited` before 5.11); else \
             report the lines above with the kernel's version",
        ),
    }
}

fn jit(facts: &Facts) -> Line {
    const TOPIC: &str = "JIT";
    match &facts.rehearsal {
        Ok(Rehearsal { programs, compiled }) if programs == compiled => {
            Line::ok(TOPIC, "on, all programs are compiled")
        }
        Ok(Rehearsal { programs, compiled }) => Line::warning(
            TOPIC,
            format!(
                "{} of {programs} programs would be interpreted, which costs many times the time",
                programs - compiled
            ),
            "`sysctl net.core.bpf_jit_enable=1`",
        ),
        Err(_) => Line::warning(TOPIC, "not known, since the programs do not load", "see the line `programs`"),
    }
}

fn pins(facts: &Facts) -> Line {
    const TOPIC: &str = "bpffs";
    let directory = facts.directory.display();
    match &facts.pins {
        Ok(()) if facts.installed => Line::ok(
            TOPIC,
            format!(
                "{directory} holds pins of this version already; what they attached is not taken for somebody else's"
            ),
        ),
        Ok(()) => Line::ok(TOPIC, format!("{directory} can be made, on the host's BPF file system")),
        Err(why) => Line::problem(
            TOPIC,
            why,
            "have a BPF file system in the host's mount namespace: `mount -t bpf bpf /sys/fs/bpf`, which systemd does at boot",
        ),
    }
}
