//! Verbs that put Bulkhead into a node's container networks and take it out again.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process,
};

use bulkhead_controller::{
    bypass, confine,
    install::{self, Record, Steps, place::Placement, runtime::Runtime},
};
use bulkhead_dataplane::{
    cni,
    kernel::{attached, detach, idle},
};
use clap::{Args, ValueEnum};
use miette::{IntoDiagnostic as _, Report, WrapErr as _, miette};
use serde_json::{Map, Value, json};

use crate::{PINS, RECORD, STATE, end_on_signals, log, out};

/// Where units of systemd are put.
const UNITS: &str = "/etc/systemd/system";
/// Where the unit says that the program is.
const PROGRAM: &str = "/usr/local/bin/bulkhead";
/// What of the agent's options belongs to the installation.
const ENVIRONMENT: &str = "/etc/bulkhead/install.env";
const NETWORKS: &str = "/etc/cni/net.d";
const AGENT: (&str, &str) = ("bulkhead.service", include_str!("../deploy/bulkhead.service"));
const FOLLOW: (&str, &str) = ("bulkhead-follow.service", include_str!("../deploy/bulkhead-follow.service"));

#[derive(Args)]
#[command(
    after_help = "It may be run again, with other options too: what is there already is left as it is. Options that are not given then are those of before, but \
                  for --no-units, --units, --program and --environment; --anew forgets them.\n\nExamples:\n  bulkhead install --dry-run\n  bulkhead install --runtime containerd\n  \
                  bulkhead install --runtime podman --network shop\n  bulkhead install --enforce"
)]
pub(crate) struct InstallArgs {
    /// The container runtime, where a node has several: it says where networks and plugins are, and how it chooses among networks.
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Directory of the runtime's networks.
    #[arg(long, value_name = "DIR")]
    networks: Option<PathBuf>,
    /// Directory of its plugins, to which `bulkhead-cni` is copied.
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Network whose containers are meant; may be given several times. All, unless said. For podman alone: the others take one network.
    #[arg(long, value_name = "NAME")]
    network: Vec<String>,
    /// Have containers wait for their policy when they start, and the agent of the unit drop what is forbidden.
    #[arg(long)]
    enforce: bool,
    /// Containers start whatever becomes of Bulkhead, and the agent of the unit judges and counts, but drops nothing. So it is at first, unless said.
    #[arg(long, conflicts_with = "enforce")]
    observe: bool,
    /// Take nothing for given that an earlier `install` was told.
    #[arg(long)]
    anew: bool,
    /// Namespace of containers whose runtime names none, `default` unless said.
    #[arg(long, value_name = "NAME", value_parser = namespace)]
    namespace: Option<String>,
    /// Namespace whose containers start whatever becomes of Bulkhead, and are guarded as soon as an agent knows of them; may be given several times. For
    /// those without which the node does not come up.
    #[arg(long, value_name = "NAMESPACE", value_parser = namespace)]
    exempt: Vec<String>,
    /// How long a container waits for its policy when it starts, in seconds, 10 unless said.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=300))]
    timeout: Option<u64>,
    /// What becomes of it then, `fail` unless said.
    #[arg(long, value_enum)]
    on_timeout: Option<OnTimeout>,
    /// The agent's --cni-socket, where that is given.
    #[arg(long, value_name = "PATH")]
    cni_socket: Option<PathBuf>,
    /// The agent's --pins, where that is given.
    #[arg(long)]
    pins: Option<PathBuf>,
    /// Directory of systemd's units, for the agent's and for that of `bulkhead follow`. Where systemd runs, /etc/systemd/system.
    #[arg(long, value_name = "DIR")]
    units: Option<PathBuf>,
    /// Install no units.
    #[arg(long, conflicts_with = "units")]
    no_units: bool,
    /// Where units find this program; it is copied there.
    #[arg(long, value_name = "PATH", default_value = PROGRAM)]
    program: PathBuf,
    /// File with what the agent's unit is told about this installation.
    #[arg(long, value_name = "PATH", default_value = ENVIRONMENT)]
    environment: PathBuf,
    /// Directory for what was installed and for copies of what was changed.
    #[arg(long, value_name = "DIR", default_value = RECORD)]
    record: PathBuf,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
#[command(
    after_help = "Stop the agent first. Containers go on, and those that start afterwards know nothing of Bulkhead.\n\nExamples:\n  bulkhead uninstall --dry-run\n  bulkhead uninstall"
)]
pub(crate) struct UninstallArgs {
    /// What `bulkhead install` was given.
    #[arg(long, value_name = "DIR", default_value = RECORD)]
    record: PathBuf,
    /// Directory on a bpffs that the agent was given.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// State directory that the agent was given, for the audit log.
    #[arg(long, default_value = STATE)]
    state: PathBuf,
    /// Where runtimes keep what CNI plugins answered.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cni_cache: PathBuf,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
#[command(
    after_help = "It writes to the directory of networks and beside the record alone, and ends when Bulkhead is uninstalled.\n\nExample:\n  bulkhead follow"
)]
pub(crate) struct FollowArgs {
    /// What `bulkhead install` was given.
    #[arg(long, value_name = "DIR", default_value = RECORD)]
    record: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnTimeout {
    /// It does not start.
    Fail,
    /// It starts with its link shut.
    Pending,
}

/// A runtime that the node has, unless one is named.
fn runtime(named: Option<Runtime>) -> Result<Runtime, Report> {
    if let Some(named) = named {
        return Ok(named);
    }
    let names = |of: &[Runtime]| of.iter().map(|runtime| runtime.name()).collect::<Vec<_>>().join(", ");
    match Runtime::found(Path::new("/"))[..] {
        [one] => Ok(one),
        [] => Err(miette!(
            help = "bulkhead install --runtime NAME",
            "no container runtime was found that uses CNI; name one of {}",
            names(&Runtime::ALL)
        )),
        ref several => Err(miette!(
            help = "bulkhead install --runtime NAME",
            "this node has {}: say which one's networks are meant",
            names(several)
        )),
    }
}

/// A containerd that is told to attach containers to more than the first network would attach them to ours and to its owner's.
fn takes_one_network(configuration: &str) -> bool {
    let lines = configuration.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let numbers = lines.filter_map(|line| line.split_once('=')).filter(|(key, _)| key.trim() == "max_conf_num");
    numbers.into_iter().all(|(_, number)| number.trim() == "1")
}

/// What the plugin would refuse when a container starts is refused now.
fn namespace(text: &str) -> Result<String, &'static str> {
    cni::config::name(text).then(|| text.to_owned()).ok_or("letters, digits, `-`, `_` and `.`")
}

/// Our entry in a chain: what differs from the plugin's defaults. What is not said is as it was `before`.
fn entry(args: &InstallArgs, before: Map<String, Value>) -> Map<String, Value> {
    let path = |path: &Path| json!(path.display().to_string());
    let mode = match (args.enforce, args.observe) {
        (true, _) => Some("enforce"),
        (_, true) => Some("observe"),
        _ if before.contains_key("mode") => None,
        _ => Some("observe"),
    };
    let exempt = Some(&args.exempt).filter(|exempt| !exempt.is_empty());
    let on_timeout = args.on_timeout.map(|what| if what == OnTimeout::Pending { "pending" } else { "fail" });
    let given = [
        ("type", Some(json!(cni::PLUGIN)), Value::Null),
        ("mode", mode.map(Value::from), Value::Null),
        ("namespace", args.namespace.as_deref().map(Value::from), json!("default")),
        ("exempt", exempt.map(|exempt| json!(exempt)), Value::Null),
        ("timeoutSeconds", args.timeout.map(Value::from), json!(10)),
        ("onTimeout", on_timeout.map(Value::from), json!("fail")),
        ("socket", args.cni_socket.as_deref().map(path), json!(cni::SOCKET)),
        ("pins", args.pins.as_deref().map(path), json!(PINS)),
    ];
    let mut entry = before;
    for (key, given, usual) in given {
        match given {
            Some(given) if given == usual => _ = entry.remove(key),
            Some(given) => _ = entry.insert(key.to_owned(), given),
            None => {}
        }
    }
    entry
}

pub(crate) fn install(args: &InstallArgs) -> Result<(), Report> {
    let plugin = env::current_exe().into_diagnostic()?.with_file_name(cni::PLUGIN);
    if !plugin.is_file() {
        return Err(miette!("{} is not there: it comes with this program", plugin.display()));
    }
    // What is there is not touched by somebody else meanwhile; who only looks makes nothing, not even a directory.
    let _locked = if args.dry_run { None } else { Some(install::lock(&args.record).into_diagnostic()?) };
    let before = Record::load(&args.record).into_diagnostic()?;
    let told = before.as_ref().filter(|_| !args.anew);

    let runtime = runtime(args.runtime.or(told.and_then(|told| told.runtime)))?;
    let placement = runtime.placement();
    if placement == Placement::First && !args.network.is_empty() {
        return Err(miette!("{} attaches containers to one network, its first: leave --network out", runtime.name()));
    }
    let configuration = "/etc/containerd/config.toml";
    if runtime == Runtime::Containerd && fs::read_to_string(configuration).is_ok_and(|text| !takes_one_network(&text)) {
        return Err(miette!(
            help = "set max_conf_num = 1",
            "{configuration} has containerd attach containers to several networks: to ours and to its owner's"
        ));
    }
    // A record that does not say it is of the same one where nobody says another.
    let is_same =
        |told: &Record| told.runtime.map_or(args.runtime.is_none() && told.placement == placement, |of| of == runtime);
    let of_it = told.filter(|told| is_same(told));
    let networks = args.networks.clone().or_else(|| of_it.map(|told| told.networks.clone()));
    let networks = networks.unwrap_or_else(|| PathBuf::from(runtime.networks()));
    let there = || of_it.and_then(|told| told.plugin.parent()).map(Path::to_owned);
    let plugins = args.plugins.clone().or_else(there).unwrap_or_else(|| runtime.plugins(Path::new("/")));
    let usual = || Path::new("/run/systemd/system").is_dir().then(|| PathBuf::from(UNITS));
    let units = if args.no_units { None } else { args.units.clone().or_else(usual) };
    if let Some(before) = &before
        && (before.networks != networks || before.placement != placement || before.plugin != plugins.join(cni::PLUGIN))
    {
        return Err(miette!(
            help = "leave --runtime, --networks and --plugins out for what is there; for another place, bulkhead uninstall, and then install anew",
            "it is installed in {} with the plugin {}",
            before.networks.display(),
            before.plugin.display()
        ));
    }
    let entry = entry(args, told.map(|told| told.entry.clone()).unwrap_or_default());
    let only = told.filter(|_| args.network.is_empty()).map_or_else(|| args.network.clone(), |told| told.only.clone());

    let made = before.as_ref().map(|before| before.made.clone()).unwrap_or_default();
    let record =
        Record { runtime: Some(runtime), placement, networks, only, entry, plugin: plugins.join(cni::PLUGIN), made };
    put(args, record, units.as_deref(), &plugin)
}

/// Puts everything in its place, units too where that is said, and says what is left to do.
fn put(args: &InstallArgs, mut record: Record, units: Option<&Path>, plugin: &Path) -> Result<(), Report> {
    let enforces = record.enforces();
    let mut made: BTreeSet<PathBuf> = record.made.into_iter().collect();
    let mut steps = Steps::default();
    steps.copy(plugin, &record.plugin);
    if let Some(units) = units {
        // What the unit of `follow` may write has to be there when it starts.
        steps.make(&record.networks);
        steps.copy(&env::current_exe().into_diagnostic()?, &args.program);
        for (name, text) in [AGENT, FOLLOW] {
            let text = text
                .replace(PROGRAM, &args.program.display().to_string())
                .replace(NETWORKS, &record.networks.display().to_string())
                .replace(RECORD, &args.record.display().to_string())
                .replace(ENVIRONMENT, &args.environment.display().to_string());
            steps.write(&units.join(name), text.into_bytes(), 0o644);
            made.insert(units.join(name));
        }
        let text = format!(
            "# Written by `bulkhead install`, which is how it is changed. Options of your own stand in agent.env.\nMODE={}\n",
            if enforces { "" } else { "--observe" }
        );
        steps.write(&args.environment, text.into_bytes(), 0o644);
        made.insert(args.environment.clone());
    }
    record.made = made.into_iter().collect();
    // Before anything is changed: what cannot be used is said now.
    let changes = record.changes().into_diagnostic().wrap_err("nothing was installed")?;
    let mut text = String::new();
    if args.dry_run {
        for step in steps.needed().into_iter().chain(record.steps(&changes, &args.record).needed()) {
            text += &format!("would {step}\n");
        }
    } else {
        let half = || "installed in part; once that is mended, the same again does the rest".to_owned();
        let mut done = |step: &install::Step| text += &format!("{step}\n");
        // First, so that whatever comes of the rest can be taken away again.
        record.store(&args.record).into_diagnostic().wrap_err_with(half)?;
        steps.run(&mut done).into_diagnostic().wrap_err_with(half)?;
        record.steps(&changes, &args.record).run(&mut done).into_diagnostic().wrap_err_with(half)?;
    }
    let held = if enforces {
        "its containers wait for their policy when they start"
    } else {
        "its containers are told to the agent when they start, and nothing waits"
    };
    for (network, file) in &changes.guarded {
        text += &format!("network {network} ({file}): {held}\n");
    }
    for unguarded in &changes.unguarded {
        text += &format!("not guarded: {unguarded}\n");
    }
    if changes.guarded.is_empty() {
        text += &format!(
            "no network is in {} yet: `bulkhead follow` adds the plugin when its owner writes one\n",
            record.networks.display()
        );
    }
    text += &next(enforces, units.is_some());
    out(&text)
}

/// What is left to do.
fn next(enforces: bool, units: bool) -> String {
    let mode = if enforces { "enforces" } else { "observes, until `bulkhead install --enforce`" };
    match units {
        // Those that run are what was before: their options, and their programs.
        true => format!(
            "next: write /etc/bulkhead/policies and /etc/bulkhead/workloads.yaml, then\n  \
             systemctl daemon-reload && systemctl enable bulkhead bulkhead-follow && systemctl restart bulkhead bulkhead-follow\nthe node then {mode}\n"
        ),
        false => format!(
            "next: have `bulkhead agent{}` and `bulkhead follow` run, before the container runtime starts\nthe node then {mode}\n",
            if enforces { "" } else { " --observe" }
        ),
    }
}

pub(crate) fn uninstall(args: &UninstallArgs) -> Result<(), Report> {
    idle(&args.pins).into_diagnostic().wrap_err(
        "nothing was changed; stop the agent first, such as by `systemctl disable --now bulkhead bulkhead-follow`",
    )?;
    let mut text = String::new();
    // To lock is to make the directory, which whoever installed nothing is spared.
    let locked =
        if args.record.is_dir() && !args.dry_run { Some(install::lock(&args.record).into_diagnostic()?) } else { None };
    let record = Record::load(&args.record).into_diagnostic()?;
    let attached_yet = |record: &Record| install::attached(record, &args.cni_cache).into_diagnostic();
    let running = record.as_ref().map(attached_yet).transpose()?.unwrap_or_default();
    let steps = match &record {
        Some(record) => vec![record.out(&args.record).into_diagnostic()?, record.clear(&args.record, running > 0)],
        None => Vec::new(),
    };
    let guards = attached(&args.pins).map_or(0, |found| found.len());
    if args.dry_run {
        for step in steps.iter().flat_map(Steps::needed) {
            text += &format!("would {step}\n");
        }
        text += &format!("would detach {guards} programs, and remove the input rule and the pins\n");
        return out(&text);
    }
    let half = || "uninstalled in part; once that is mended, the same again does the rest".to_owned();
    let mut steps = steps.iter();
    let mut done = |step: &install::Step| text += &format!("{step}\n");
    // Networks first: no container shall wait for an agent that does not come.
    if let Some(out) = steps.next() {
        out.run(&mut done).into_diagnostic().wrap_err_with(half)?;
    }
    detach(&args.pins).into_diagnostic().wrap_err_with(half)?;
    if args.state.exists()
        && let Err(error) = bypass::record_detach(&args.pins, &args.state)
    {
        eprintln!("who did this could not be recorded: {error}");
    }
    for clear in steps {
        clear.run(&mut done).into_diagnostic().wrap_err_with(half)?;
    }
    drop(locked);
    text += &format!("detached {guards} programs; nothing is guarded any more\n");
    match &record {
        None => text += &format!("no network was changed: there is no record in {}\n", args.record.display()),
        Some(record) if running > 0 => {
            text += &format!(
                "{} stays, since the runtime may call it when one of {running} attachments goes; remove it when they are gone\n",
                record.plugin.display()
            );
        }
        Some(_) => {}
    }
    text += &format!("left: {}, your policies, and this program\n", args.state.display());
    out(&text)
}

pub(crate) fn follow(args: &FollowArgs) -> Result<(), Report> {
    log();
    let Some(record) = Record::load(&args.record).into_diagnostic()? else {
        return Err(miette!(
            help = "bulkhead install",
            "nothing is installed: there is no record in {}",
            args.record.display()
        ));
    };
    confine::write_below(&[record.networks, args.record.clone()]).into_diagnostic()?;
    // Files are replaced at once: there is nothing to finish.
    end_on_signals(|| process::exit(0))?;
    install::follow::follow(&args.record).into_diagnostic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containerd_with_several_networks_is_told_apart() {
        assert!(takes_one_network(""));
        assert!(takes_one_network("[cni]\n  max_conf_num = 1\n# max_conf_num = 0\n"));
        assert!(!takes_one_network("[cni]\n  max_conf_num = 0\n"));
        assert!(!takes_one_network("  max_conf_num=2"));
    }
}
