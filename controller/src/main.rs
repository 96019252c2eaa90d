//! The command line: the agent, and what it shows.

mod ask;
mod connections;
mod heap;
mod look;
mod online;
mod setup;
mod survey;
mod topics;
mod verify;

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bulkhead_controller::{
    adopt::{Scope, arriving::Arriving},
    agent::{Agent, Settings, StartError},
    api::{identity::Appliers, server::Socket},
    bypass,
    cluster::Cluster,
    cni::Plugins,
    confine::{self, Needs},
    diagnostic::{Diagnostics, Drawn},
    input::Locations,
    install::Record,
    run::{Api, Life, open_many_files},
    show,
    source::Source,
};
use bulkhead_dataplane::{
    bypass::{bypass, end_bypass},
    cni,
    desired::Manner,
    expedite, gate,
    kernel::{KernelNode, Options, XdpMode, attached, detach},
    mark,
};
use clap::{ArgGroup, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use miette::{IntoDiagnostic as _, Report, WrapErr as _};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use self::topics::TOPICS;

/// Micro-segmentation for container networks.
#[derive(Parser)]
#[command(name = "bulkhead", version, about, max_term_width = 100, disable_help_subcommand = true, after_help = topics::list())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enforce the policies of a directory on this node, and follow their changes.
    ///
    /// Runs in the network namespace whose links it guards. SIGTERM and SIGINT end it; what is in force stays in force.
    Agent(AgentArgs),
    /// Show whether this node enforces, what is in force, and what is not well.
    ///
    /// Asks the agent; where none answers it says so, and reads the pins. The exit status is 0 when all is well, 2 when something is not: no agent
    /// answers, enforcement is bypassed, a workload is not guarded, not all input is used, a table is nearly full. It is 1 when nothing can be read.
    Status(look::StatusArgs),
    /// List what the node knows. Asks the agent, or reads the pins with --offline.
    Get(look::GetArgs),
    /// Show flows that were allowed and samples of what was blocked, each with its reason and line. Asks the agent, or reads the pins with --offline.
    Observe(look::ObserveArgs),
    /// Show who may call whom according to files, needing no agent.
    Simulate(ask::SimulateArgs),
    /// Tell whether a connection is allowed, by which lines, and what is missing: of files, needing no agent, or of what is in force.
    Explain(ask::ExplainArgs),
    /// Show which connections a change of files adds and removes, needing no agent.
    Diff(ask::DiffArgs),
    /// Show what a workload reaches once it is taken over, hop by hop, needing no agent.
    BlastRadius(ask::BlastArgs),
    /// Report what somebody should look at in files: rules without effect, doors left open, connections half open. Needs no agent.
    Lint(ask::LintArgs),
    /// Print Intents and Guards of files as objects of Kubernetes, for kubectl. Needs no agent.
    Manifest(ask::ManifestArgs),
    /// Tell whether this node can be guarded, before anything is installed: kernel, network and who else is there. Needs no agent, changes nothing.
    Check(survey::CheckArgs),
    /// Show what policies would open and cut, and how much room they need. Changes nothing. Asks the agent.
    Plan(online::PlanArgs),
    /// Put a plan in force. Asks the agent.
    Apply(online::ApplyArgs),
    /// Go back to the policies of an earlier revision. Asks the agent.
    Rollback(online::RollbackArgs),
    /// Say that a revision that waits for it is good. Asks the agent.
    Confirm(online::ConfirmArgs),
    /// List revisions: who changed what is in force, when and why. Asks the agent.
    Revisions(online::RevisionsArgs),
    /// List policy files and documents in force, and where each came from. Asks the agent.
    Policies(online::PoliciesArgs),
    /// Check the audit log. Needs no agent.
    #[command(subcommand)]
    Audit(verify::Audit),
    /// Let pass what is forbidden on this node, for a while: the way out on the worst day. Needs no agent.
    ///
    /// Until the time is over, the programs of this node drop nothing that they judge: neither what policies, Guards and quarantine forbid, nor what
    /// workloads spoof, nor fragments, nor what cannot be parsed. Forged tunnel packets count as checked and get into the overlay. All of it is judged
    /// and counted all the same, as observed.
    ///
    /// Still dropped are frames that were flooded past a workload, and by the input rule tunnel packets that no program has marked: by a link without
    /// programs, not to a VTEP of this node, or beyond parsing. Links whose programs are missing, since an agent died as it changed the mask, stay
    /// shut: `bulkhead detach --all` opens them. Other nodes enforce as before: a call between nodes needs a bypass on each that forbids it.
    ///
    /// The programs watch the clock: the bypass ends by itself, with the agent alive or dead, and what is forbidden is then cut with its next packet,
    /// established connections included. An agent that starts, publishes or ends meanwhile does not change that.
    Bypass(BypassArgs),
    /// Put the CNI plugin into the networks of this node's container runtime. Needs no agent.
    ///
    /// Where the runtime takes its first network (containerd, CRI-O, k3s) it gets one of its own, 00-bulkhead.conflist: the owner's chain with the plugin
    /// behind it. The owner's file stays as it is, and no rewriting of it lets a container start unguarded. podman's networks are changed in place, and
    /// copies are kept. `bulkhead follow` keeps both up to date. Where systemd runs, units for it and for the agent are installed too; none is started.
    ///
    /// Until --enforce is given, nothing is dropped and no container waits: look at what would be blocked, then install again with it.
    Install(setup::InstallArgs),
    /// Take Bulkhead out of this node's networks, detach every program, remove the pins. Needs no agent; stop it first.
    ///
    /// Networks get back what their owners wrote. The state directory stays, with the audit log.
    Uninstall(setup::UninstallArgs),
    /// Keep the CNI plugin in networks whose owners rewrite them. Needs no agent.
    Follow(setup::FollowArgs),
    /// Keep or cut the TCP connections that workloads had before they were guarded. Needs no agent.
    ///
    /// The programs know a connection by its first packet. Of one that is older than its guard they have seen none, so that an answer which comes first
    /// is nobody's and dropped. With `keep` each gets what its first packet would have left, and is judged with its next packet: what policy allows goes
    /// on, what it does not is cut then, and where nothing is dropped it goes on and is reported. With `cut` all of them end, allowed or not.
    ///
    /// It looks at all guarded endpoints of the node. What the programs know already stays as it is, so that it does no harm at any time. It enters the
    /// workloads' network namespaces and reads their sockets, which needs CAP_SYS_ADMIN beside what the agent has; that is why the agent does not do it.
    Adopt(connections::AdoptArgs),
    /// Show a runbook, or the help of a verb.
    Help {
        /// A topic or a verb; without one, all of them are listed.
        topic: Option<String>,
    },
    /// Detach every program, remove the input rule and the pins: nothing is guarded afterwards. Needs no agent; stop it first. Networks stay as they are:
    /// where `bulkhead install` or the chart put the CNI plugin into them, `bulkhead uninstall` takes that out too.
    ///
    /// What others attached stays. Without --all it says what it would do, and does nothing.
    Detach(DetachArgs),
}

/// How often it is said what a start waits for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a start that waits looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);
const PINS: &str = "/sys/fs/bpf/bulkhead";
const STATE: &str = "/var/lib/bulkhead";
const SOCKET: &str = "/run/bulkhead/api.sock";
/// Where what was installed is written down.
const RECORD: &str = "/etc/bulkhead/install";
const CNI_CACHE: &str = "/var/lib/cni";

/// Number of a group.
fn group(text: &str) -> Result<u32, String> {
    let named = || nix::unistd::Group::from_name(text).ok().flatten().map(|group| group.gid.as_raw());
    text.parse().ok().or_else(named).ok_or_else(|| format!("there is no group `{text}`"))
}

/// Number of a user.
fn user(text: &str) -> Result<u32, String> {
    let named = || nix::unistd::User::from_name(text).ok().flatten().map(|user| user.uid.as_raw());
    text.parse().ok().or_else(named).ok_or_else(|| format!("there is no user `{text}`"))
}

#[derive(Args)]
struct AgentArgs {
    /// Who says which workloads and policies there are.
    #[arg(long, value_enum, default_value_t)]
    source: From,
    /// Directory of policies: every *.yaml and *.yml in it. With the source `file`.
    #[arg(long, required_if_eq("source", "file"), conflicts_with = "kubeconfig")]
    policies: Option<PathBuf>,
    /// The workloads file, outside of the directory of policies. With the source `file`.
    #[arg(long, required_if_eq("source", "file"), conflicts_with = "kubeconfig")]
    workloads: Option<PathBuf>,
    /// Where the API server is and who asks it, with the source `kubernetes`; without it, what the service account of a pod says.
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// Key of the taint with which nodes of the cluster join, such as bulkhead.io/starting: taken from this node as soon as what runs there is guarded, so
    /// that no pod comes before. Needs the right to get and patch nodes.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["policies", "workloads"])]
    startup_taint: Option<String>,
    /// Name of this node in the workloads file, or in the cluster.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Directory on a bpffs, made if it is missing.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// Directory for the database of revisions, the audit log and what else outlives the agent, made if it is missing.
    #[arg(long, default_value = STATE)]
    state: PathBuf,
    /// Address of the endpoint for Prometheus.
    #[arg(long, default_value = "127.0.0.1:9477")]
    metrics: SocketAddr,
    /// Socket of the API. Who may connect may read.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Socket of the CNI plugin; what container runtimes tell is kept beside it, so put it on a file system that a reboot empties.
    #[arg(long, value_name = "PATH", default_value = cni::SOCKET)]
    cni_socket: PathBuf,
    /// Directory in which libcni, which most runtimes call plugins by, keeps results: who runs without a guard is looked for there.
    #[arg(long, value_name = "DIR", default_value = CNI_CACHE)]
    cni_cache: PathBuf,
    /// Bridge whose ports are all workloads'; may be given several times. A port is shut when it comes, and as long as nobody is known to run behind it,
    /// unless this node only observes.
    #[arg(long, value_name = "NAME")]
    bridge: Vec<String>,
    /// Group, by name or number, that may connect beside root.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    socket_group: Option<u32>,
    /// User, by name or number, who may change what is in force, beside root; may be given several times. It must be able to connect.
    #[arg(long, value_name = "USER", value_parser = user)]
    apply_uid: Vec<u32>,
    /// Check tunnel traffic in XDP too, on the links that carry the overlay. Attaching in the driver resets many NICs.
    #[arg(long, value_enum, default_value_t)]
    xdp: Xdp,
    /// Shut bridge ports of these names unless they are guarded, such as `veth*`: what a runtime starts past the plugin reaches nobody, also while no
    /// agent runs. All bridges of this network namespace are meant, those of others too. `bulkhead bypass` does not open it, `detach` does.
    #[arg(long, value_name = "NAME", value_parser = gate::pattern)]
    gate: Option<String>,
    /// Judge and count, but drop nothing on this node: what would be blocked is reported and passes, also what is spoofed or forged. The next agent
    /// that starts without it enforces again.
    #[arg(long)]
    observe: bool,
    /// Forward packets between workloads of a bridge, and between them and an overlay, straight from one of Bulkhead's programs to the next: as fast as
    /// the node without Bulkhead or faster, since bridge, routes, netfilter (iptables, nftables) and other programs at the same hook do not see them. Only where
    /// nothing of that is needed, neither for filtering nor for shaping nor for counting, and beside no other policy engine, which would be passed by. The node
    /// forwards as ever what goes to services, to nodes, to the world, plain or from bridge to bridge, and all while something only observes.
    #[arg(long)]
    direct: bool,
    /// Bits of packet marks that are Bulkhead's on this node, where others use some of the default's: 10 adjacent bits for the slot of an endpoint
    /// and two more, never 0x4000 and 0x8000, which are kube-proxy's and kubelet's. When an agent starts with another mask than the one in force,
    /// the guarded links drop everything for the moment that the change takes.
    #[arg(long, value_name = "MASK", default_value = "0x3f000fff", value_parser = mark::parse)]
    mark_mask: u32,
    /// How long the kernel may take for grace periods, which attaching and detaching wait for.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    grace_periods: GracePeriods,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum GracePeriods {
    /// Well below a millisecond: /sys/kernel/rcu_expedited is set while the agent waits, where it can be written. The kernel does so by itself for most
    /// changes to links. It interrupts processors that are busy in the kernel; a kernel for real time is left alone.
    #[default]
    Expedited,
    /// Some ten milliseconds each.
    Normal,
}

#[derive(Args)]
#[command(group(ArgGroup::new("time or end").args(["time", "end"]).required(true)))]
struct BypassArgs {
    /// For how long from now on: at least 1s, at most 24h. It takes the place of a bypass that is in force.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// End it now.
    #[arg(long)]
    end: bool,
    /// Why, for the log and for whoever asks `bulkhead status`.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Directory on a bpffs that the agent was given.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// State directory that the agent was given; who did it and why is kept there, if that is possible.
    #[arg(long, default_value = STATE)]
    state: PathBuf,
}

/// What others are shown on a line of theirs.
fn reason(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("say why, in a few words"),
        text if text.contains(char::is_control) => Err("one line of text, without control characters"),
        text => Ok(text.to_owned()),
    }
}

#[derive(Args)]
struct DetachArgs {
    /// All of it, for good: `bulkhead bypass` lifts enforcement for a while and needs nothing to be set up again.
    #[arg(long)]
    all: bool,
    /// Directory on a bpffs that the agent was given.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// State directory that the agent was given, for the audit log.
    #[arg(long, default_value = STATE)]
    state: PathBuf,
}

/// Where workloads and policies come from.
#[derive(Clone, Copy, Default, ValueEnum)]
enum From {
    /// A workloads file and a directory of policies.
    #[default]
    File,
    /// The API server of the cluster.
    Kubernetes,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Xdp {
    /// TC alone.
    #[default]
    Off,
    /// Behind the driver.
    Generic,
    /// In the driver.
    Native,
}

impl std::convert::From<Xdp> for XdpMode {
    fn from(xdp: Xdp) -> Self {
        match xdp {
            Xdp::Off => Self::Off,
            Xdp::Generic => Self::Generic,
            Xdp::Native => Self::Native,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Agent(args) => return agent(&args),
        Command::Status(args) => return status(&args),
        Command::Get(args) => look::get(&args).and_then(|text| out(&text)),
        Command::Observe(args) => look::observe(&args),
        Command::Simulate(args) => return answer(ask::simulate(&args)),
        Command::Explain(args) if args.paths.is_empty() => return online_explain(&args),
        Command::Explain(args) => return answer(ask::explain(&args)),
        Command::Diff(args) => return answer(ask::diff(&args)),
        Command::BlastRadius(args) => return answer(ask::blast_radius(&args)),
        Command::Lint(args) => return answer(ask::lint(&args)),
        Command::Manifest(args) => return answer(ask::manifest(&args)),
        Command::Check(args) => return answer(Ok(survey::check(&args))),
        Command::Plan(args) => online::plan(&args).and_then(|text| out(&text)),
        Command::Apply(args) => online::apply(&args).and_then(|text| out(&text)),
        Command::Rollback(args) => online::rollback(&args).and_then(|text| out(&text)),
        Command::Confirm(args) => online::confirm(&args).and_then(|text| out(&text)),
        Command::Revisions(args) => online::revisions(&args).and_then(|text| out(&text)),
        Command::Policies(args) => online::policies(&args).and_then(|text| out(&text)),
        Command::Audit(verify::Audit::Verify(args)) => {
            verify::verify(args).into_diagnostic().and_then(|text| out(&text))
        }
        Command::Bypass(args) => lift(&args),
        Command::Install(args) => setup::install(&args),
        Command::Uninstall(args) => setup::uninstall(&args),
        Command::Follow(args) => setup::follow(&args),
        Command::Adopt(args) => return answer(connections::adopt(&args)),
        Command::Help { topic } => help(topic.as_deref()),
        Command::Detach(args) => take_away(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => fail(&report),
    }
}

/// A connection under what is in force.
fn online_explain(args: &ask::ExplainArgs) -> ExitCode {
    let asked = online::explain(&args.socket, args.json, &args.from, &args.to, &args.port);
    match asked.and_then(|(text, allowed)| out(&text).map(|()| allowed)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(report) => fail(&report),
    }
}

/// A runbook, the help of a verb, or what there is.
fn help(topic: Option<&str>) -> Result<(), Report> {
    let mut all = Cli::command();
    let Some(name) = topic else { return out(&all.render_long_help().to_string()) };
    if let Some(topic) = TOPICS.iter().find(|topic| topic.name == name) {
        return out(topic.text);
    }
    all.build();
    match all.find_subcommand_mut(name) {
        Some(verb) => out(&verb.render_long_help().to_string()),
        None => Err(miette::miette!("there is no topic and no verb `{name}`\n{}", topics::list())),
    }
}

/// Prints an answer; what is wrong with the files that were asked about is drawn.
fn answer(answer: Result<ask::Answer, Diagnostics>) -> ExitCode {
    match answer {
        Ok(ask::Answer { text, notes, good }) => {
            for note in notes.0 {
                err(&Report::new(Drawn::from(note)));
            }
            match out(&text) {
                Ok(()) if good => ExitCode::SUCCESS,
                Ok(()) => ExitCode::FAILURE,
                Err(report) => fail(&report),
            }
        }
        Err(found) => draw(found),
    }
}

fn fail(report: &Report) -> ExitCode {
    err(report);
    ExitCode::FAILURE
}

fn draw(found: Diagnostics) -> ExitCode {
    for diagnostic in found.0 {
        err(&Report::new(Drawn::from(diagnostic)));
    }
    ExitCode::FAILURE
}

/// Logs to standard error.
fn log() {
    // What goes wrong between us and an API server is said once, by us.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn agent(args: &AgentArgs) -> ExitCode {
    log();
    match enforce(args) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(found)) => draw(found),
        Err(report) => fail(&report),
    }
}

/// The inner error is what people wrote.
fn enforce(args: &AgentArgs) -> Result<Result<(), Diagnostics>, Report> {
    let parent =
        |socket: &Path| socket.parent().filter(|path| *path != Path::new("")).unwrap_or(Path::new(".")).to_owned();
    let sockets = vec![parent(&args.socket), parent(&args.cni_socket)];
    let (state, pins) = (args.state.clone(), args.pins.clone());
    if let Err(error) = open_many_files() {
        tracing::warn!("no more files may be open at once than before: {error}");
    }
    match args.grace_periods {
        GracePeriods::Expedited => {
            if let Err(error) = expedite::allow() {
                tracing::info!(
                    "attaching takes the kernel some ten milliseconds, as with `--grace-periods normal`: {}: {error}",
                    expedite::SWITCH
                );
            }
        }
        GracePeriods::Normal => {
            if let Err(error) = expedite::undo() {
                tracing::warn!(
                    "{} is still set, by an agent that was killed; write 0 to it: {error}",
                    expedite::SWITCH
                );
            }
        }
    }
    let needs = Needs { state, sockets, pins, group: args.socket_group };
    let confined = confine::confine(&needs)
        .into_diagnostic()
        .wrap_err("the agent does not start; what is in force stays as it is")?;
    tracing::info!("{confined}");

    let cluster = match args.source {
        From::File => None,
        From::Kubernetes if args.policies.is_some() || args.workloads.is_some() => {
            let help = "leave out --policies and --workloads, or say `--source file`";
            return Err(miette::miette!(help = help, "with the source `kubernetes` no files are read"));
        }
        From::Kubernetes => Some(Arc::new(Cluster::follow(args.kubeconfig.as_deref()).into_diagnostic()?)),
    };
    let source: Arc<dyn Source> = match &cluster {
        Some(cluster) => Arc::<Cluster>::clone(cluster),
        None => Arc::new(Locations {
            policies: args.policies.clone().unwrap_or_default(),
            workloads: args.workloads.clone().unwrap_or_default(),
        }),
    };
    let refused = || format!("metrics cannot be served at {}; another agent may run here", args.metrics);
    let life = Life::new(Some(args.metrics)).into_diagnostic().wrap_err_with(refused)?;
    let refused = || format!("the API cannot be served at {}", args.socket.display());
    let socket = Socket::bind(&args.socket, args.socket_group).into_diagnostic().wrap_err_with(refused)?;
    let appliers = Appliers(args.apply_uid.iter().copied().collect());
    let life = life.api(Api { socket, appliers, state: args.state.clone() });
    let refused = || format!("CNI plugins cannot be served at {}", args.cni_socket.display());
    let arriving = Arriving::default();
    let plugins = Plugins::bind(&args.cni_socket, Arc::clone(&source), arriving.clone())
        .into_diagnostic()
        .wrap_err_with(refused)?;
    let life = life.plugins(plugins);
    let (stopper, ending) = (life.stopper(), Arc::new(AtomicBool::new(false)));
    let ends = Arc::clone(&ending);
    end_on_signals(move || {
        ends.store(true, Ordering::Relaxed);
        stopper.stop();
    })?;

    let options = Options::new(&args.pins, &args.state).xdp(args.xdp.into()).mark_mask(args.mark_mask);
    let options = options.gate(args.gate.clone());
    let node = KernelNode::open(options).into_diagnostic()?;
    let settings = Settings {
        source: Arc::clone(&source),
        node: args.node.clone(),
        state: args.state.clone(),
        manner: Manner { observe: args.observe, direct: args.direct },
        cni: Some(args.cni_socket.clone()),
        scope: Scope { cache: Some(args.cni_cache.clone()), bridges: args.bridge.iter().cloned().collect(), arriving },
    };
    if let Some(cluster) = &cluster
        && !wait_for(cluster, &ending)
    {
        return Ok(Ok(()));
    }
    let mut agent = match Agent::start(node, settings) {
        Ok(agent) => agent,
        Err(StartError::Input(found)) => return Ok(Err(found)),
        Err(error) => return Err(error).into_diagnostic(),
    };
    if let Some(cluster) = &cluster {
        cluster.tell(&args.node, &life.handle(), args.startup_taint.as_deref()).into_diagnostic()?;
    }
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("systemd could not be told that the walls stand: {error}");
    }
    if let Some(address) = life.address() {
        tracing::info!("metrics at http://{address}/metrics, the API at {}", args.socket.display());
    }
    life.run(&mut agent, &*source).into_diagnostic().map(Ok)
}

/// Nothing is changed before all of a cluster is known: what is in force stays.
/// `false` when the agent is to end meanwhile.
fn wait_for(cluster: &Cluster, ending: &AtomicBool) -> bool {
    let (start, mut said) = (Instant::now(), Instant::now());
    while !cluster.wait(LOOK) {
        if ending.load(Ordering::Relaxed) {
            return false;
        }
        if said.elapsed() >= PATIENCE {
            let waited = start.elapsed().as_secs();
            tracing::warn!("what is in force stays as it is, for {waited} s already: {}", cluster.missing());
            said = Instant::now();
        }
    }
    true
}

/// Calls when the process is asked to end: the agent ends between two steps of its work, never within one.
/// Process 1 of a container, which has no default, must ask for this too.
fn end_on_signals(end: impl FnOnce() + Send + 'static) -> Result<(), Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().into_diagnostic()?;
    let (mut terminate, mut interrupt) = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate()).into_diagnostic()?, signal(SignalKind::interrupt()).into_diagnostic()?)
    };
    let wait = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        end();
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait)).into_diagnostic()?;
    Ok(())
}

/// The exit status says whether all is well.
fn status(args: &look::StatusArgs) -> ExitCode {
    match look::status(args).and_then(|(text, well)| out(&text).map(|()| well)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(report) => fail(&report),
    }
}

/// Whatever cannot be recorded, it is done.
fn take_away(DetachArgs { all, pins, state }: &DetachArgs) -> Result<(), Report> {
    if !all {
        return Err(would_take_away(pins));
    }
    detach(pins).into_diagnostic()?;
    // Where no agent ever was, there is nothing to tell of.
    if state.exists()
        && let Err(error) = bypass::record_detach(pins, state)
    {
        eprintln!("who did this could not be recorded: {error}");
    }
    let remedy = "no container starts there until an agent runs, or `bulkhead uninstall` takes it out";
    match Record::load(Path::new(RECORD)) {
        Ok(Some(record)) if record.enforces() => {
            eprintln!("the CNI plugin is in this node's networks still: {remedy}");
        }
        Ok(_) => {}
        Err(error) => {
            eprintln!("whether the CNI plugin is in this node's networks is not known: {error}; if it is, {remedy}");
        }
    }
    Ok(())
}

/// Whoever has not said that all shall go may mean something smaller, or another verb.
fn would_take_away(pins: &Path) -> Report {
    let what = match attached(pins) {
        Ok(found) if found.is_empty() => "no program, since none is attached".to_owned(),
        Ok(found) => {
            let links: BTreeSet<_> = found.into_iter().map(|found| found.link).collect();
            format!("all programs from {}", Vec::from_iter(links).join(", "))
        }
        Err(error) => format!("all programs (which, cannot be told: {error})"),
    };
    let place = elsewhere(pins);
    let help = format!(
        "if that is meant: bulkhead detach --all{place}\n\
         to let pass what is forbidden for a while, after which the walls stand again by themselves: bulkhead bypass --for 15m --reason TEXT{place}"
    );
    miette::miette!(
        help = help,
        "nothing was done. This would detach {what}, and remove the input rule and the pins below {}: this node would not be guarded any more, until \
         an agent starts",
        pins.display()
    )
}

/// What a command needs to be said beside for pins that are not in the usual place.
fn elsewhere(pins: &Path) -> String {
    if pins == Path::new(PINS) { String::new() } else { format!(" --pins {}", pins.display()) }
}

/// The kernel first: whatever cannot be recorded or printed, the bypass holds.
fn lift(args: &BypassArgs) -> Result<(), Report> {
    log();
    let (until, text) = match args.time {
        Some(time) => {
            let until = bypass(&args.pins, time).into_diagnostic()?;
            let pins = elsewhere(&args.pins);
            let text = format!(
                "until then this node drops nothing that its programs judge: no policy, Guard or quarantine holds, nothing spoofed or forged is kept \
                 out, and all of it is counted as observed; other nodes enforce as before\nto end it now: bulkhead bypass --end --reason TEXT{pins}\n"
            );
            (Some(until), text)
        }
        None => match end_bypass(&args.pins).into_diagnostic()? {
            Some(until) => {
                (None, format!("the bypass until {} is ended: this node enforces again\n", show::time(until)))
            }
            None => (None, "there was no bypass: this node enforces\n".to_owned()),
        },
    };
    let record = bypass::Record::new(until, &args.reason);
    if let Err(error) = bypass::record(&record, &args.state) {
        eprintln!("who did this and why could not be recorded: {error}");
    }
    let banner = until.map(|until| format!("{}\n", bypass::banner(until, Some(&record))));
    out(&format!("{}{text}", banner.unwrap_or_default()))
}

/// Says what is wrong; to nobody where whoever reads it has seen enough.
fn err(report: &Report) {
    _ = writeln!(std::io::stderr().lock(), "{report:?}");
}

/// Whoever reads the output may have seen enough.
fn out(text: &str) -> Result<(), Report> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.into_diagnostic(),
    }
}
