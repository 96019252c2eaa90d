//! The story, step by step.

use std::{net::TcpStream, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, ensure};
use bulkhead_dataplane::{kernel::INPUT_RULE, node::Reading};
use bulkhead_ebpf::reason::Reason;
use bulkhead_topology::traffic::{Outcome, echo};

use crate::{
    calls::{Answer, Ask, BRIEF, Call, PATIENCE, everybody, guarded, table, unguarded},
    forgery, kept,
    score::Score,
    shop::{POLICY, POLICY_FILE, Shop},
    show,
    stop::Stop,
};

/// Tells it, and removes everything; with `keep` leaves it standing.
pub(crate) fn run(keep: bool) -> Result<ExitCode> {
    let begun = Instant::now();
    let stop = Stop::on_signals()?;
    show::title("Bulkhead: a shop on two nodes, and an intruder");
    let mut shop = Shop::build(keep, stop.clone())?;
    let mut score = Score::default();
    let told = tell(&mut shop, &mut score);
    if stop.asked() {
        show::say("interrupted: removing everything");
        let found = remove(shop, keep);
        ensure!(found.is_empty(), "left behind: {}", found.join(", "));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let standing = if keep {
        Some(shop)
    } else {
        let found = remove(shop, keep);
        score.fact("namespaces, pins, files and processes of this run", "gone", found.is_empty());
        found.iter().for_each(|left| show::alarm(&format!("left behind: {left}")));
        None
    };
    show::step(8, "What was tried");
    score.draw();
    let good = told.is_ok() && score.good();
    if good {
        show::took("everything went as expected, in all", begun);
    }
    if let Some(shop) = standing {
        kept::leave(shop)?;
    }
    told?;
    ensure!(good, "not everything went as expected: see {} above", show::BAD);
    Ok(ExitCode::SUCCESS)
}

/// Exit status after SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// Removes everything. Returns what is there all the same.
fn remove(shop: Shop, keep: bool) -> Vec<String> {
    let (traces, id) = (shop.traces(), shop.lab.topology.id().to_owned());
    drop(shop);
    if keep {
        // Such a topology does not go by itself.
        bulkhead_topology::remove_kept(&id);
    }
    traces.found()
}

fn tell(shop: &mut Shop, score: &mut Score) -> Result<()> {
    show::step(0, "Two nodes, their containers, and a third host");
    shop.draw();
    before(shop, score)?;
    apply(shop)?;
    after(shop, score)?;
    revoke(shop, score)?;
    forge(shop, score)?;
    kill(shop, score)?;
    count(shop, score)
}

fn before(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(1, "Before: everything is reachable");
    show::say("Each cell is a TCP connection with an answer, over IPv4 and over IPv6.");
    let answers = unguarded(shop, &everybody())?;
    table(&answers);
    score.calls("calls without a policy", &answers);
    let [forged, ..] = forgery::kinds(shop);
    show::say(&format!("The third host, which is no node, sends n2 a forged VXLAN packet: {}.", forged.what));
    let arrived = forgery::arrives(shop, &forged)?;
    show::check("it is seen on db's own interface: the overlay believes whoever can reach it", arrived);
    score.fact("forged VXLAN packet without a guard", "reaches db", arrived);
    Ok(())
}

fn apply(shop: &mut Shop) -> Result<()> {
    show::step(2, "The policy");
    show::policy(POLICY);
    shop.lab.policy(POLICY_FILE, POLICY)?;
    let start = Instant::now();
    shop.start_agents()?;
    show::took("an agent on each node has loaded its programs and put the policy in force", start);
    Ok(())
}

fn after(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(3, "After: what the policy allows, and nothing else");
    show::say(&format!(
        "The same calls again. A number is the line of {POLICY_FILE} that decides: the rule that allows it, or the service whose wall blocks it."
    ));
    let answers = guarded(shop, &everybody())?;
    table(&answers);
    let (allowed, blocked): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| answer.expected.allowed);
    show::blank();
    show::say("What still works:");
    allowed.into_iter().for_each(Answer::tell);
    show::blank();
    show::say("What does not (the intruder's calls from web follow):");
    blocked.into_iter().filter(|answer| answer.call.from != "web").for_each(Answer::tell_briefly);
    score.calls("calls under the policy", &answers);

    show::blank();
    show::say("An intruder has taken over web, and scans from inside its namespace:");
    let scan = [
        Call { from: "web", to: "db", ask: Ask::Ping },
        Call::tcp("web", "db", 5432),
        Call::tcp("web", "db", 22),
        Call::tcp("web", "payments", 9090),
        Call::tcp("web", "cart", 22),
        Call::tcp("web", "stripe", 443),
        Call::tcp("web", "thief", 443),
        Call::tcp("web", "cart", 8080),
    ];
    let answers = guarded(shop, &scan)?;
    answers.iter().for_each(Answer::tell);
    show::say("What web itself may do is all that the intruder may do.");
    score.calls("calls of the intruder", &answers);
    Ok(())
}

/// A connection that stays open over several steps.
struct Live(TcpStream);

impl Live {
    fn open(shop: &Shop, from: &str, to: &str, port: u16) -> Result<Self> {
        let (from, to) = (shop.party(from), shop.party(to));
        let mut stream = from.netns.client().deadline(PATIENCE).connect((to.addresses[0], port).into())?;
        ensure!(echo(&mut stream, PATIENCE)?.is_answered(), "no answer over a new connection");
        Ok(Self(stream))
    }

    fn lives(&mut self) -> Result<bool> {
        Ok(echo(&mut self.0, PATIENCE)?.is_answered())
    }

    fn is_cut(&mut self) -> Result<bool> {
        Ok(echo(&mut self.0, BRIEF)? == Outcome::TimedOut)
    }
}

fn revoke(shop: &Shop, score: &mut Score) -> Result<()> {
    const RULE: &str = ", db:5432]";
    show::step(4, "A rule is revoked, and a live connection is cut");
    let mut cart = Live::open(shop, "cart", "db", 5432)?;
    let mut payments = Live::open(shop, "payments", "db", 5432)?;
    show::say(&format!("cart and payments each hold a connection to db. Somebody edits {POLICY_FILE}:"));
    let (number, line) =
        (1..).zip(POLICY.lines()).find(|(_, line)| line.contains(RULE)).context("no such rule in the policy")?;
    let edited = line.replace(RULE, "]");
    show::changed(number, line, &edited);
    let start = Instant::now();
    shop.edit(&POLICY.replace(line, &edited))?;
    show::took("both agents have noticed, and put it in force", start);
    let cut = cart.is_cut()?;
    show::check("cart's connection is cut on its next packet", cut);
    score.fact("live connection cart -> db after its rule is revoked", "cut", cut);
    let lives = payments.lives()?;
    show::check("payments' connection goes on", lives);
    score.fact("live connection payments -> db beside it", "goes on", lives);
    let call = [Call::tcp("cart", "db", 5432)];
    let answers = guarded(shop, &call)?;
    answers.iter().for_each(Answer::tell);
    ensure!(answers.iter().all(|answer| !answer.expected.allowed), "the edit changes nothing");
    score.calls("new call cart -> db without the rule", &answers);
    shop.edit(POLICY)?;
    let answers = guarded(shop, &call)?;
    show::say("The line is put back:");
    answers.iter().for_each(Answer::tell);
    score.calls("new call cart -> db with the rule again", &answers);
    Ok(())
}

fn forge(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(5, "Forged VXLAN packets from the third host");
    show::say("The policy lets cart call db, so it cannot help here. The check before decapsulation does:");
    for forged in forgery::kinds(shop) {
        let dropped = forgery::dropped(shop, &forged)?;
        show::check(
            &format!("{}: dropped on n2. Reason {}: {}", forged.what, forged.reason.label(), plain(forged.reason)),
            dropped,
        );
        score.fact(&format!("forged VXLAN packet, {}", forged.reason.label()), "dropped and counted", dropped);
    }
    Ok(())
}

fn plain(reason: Reason) -> &'static str {
    reason.text().trim_end_matches('.')
}

fn kill(shop: &mut Shop, score: &mut Score) -> Result<()> {
    show::step(6, "The agents are killed");
    let mut live = Live::open(shop, "payments", "db", 5432)?;
    let ids = shop.kill_agents()?.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    show::say(&format!("kill -KILL {ids}. Nothing of Bulkhead runs now but what is in the kernel."));
    let lives = live.lives()?;
    show::check("a connection from before goes on", lives);
    score.fact("live connection with no agent", "goes on", lives);
    let answers = guarded(
        shop,
        &[Call::tcp("cart", "db", 5432), Call::tcp("web", "db", 5432), Call::tcp("customer", "db", 5432)],
    )?;
    answers.iter().for_each(Answer::tell_briefly);
    score.calls("new calls with no agent", &answers);
    let [forged, ..] = forgery::kinds(shop);
    let dropped = forgery::dropped(shop, &forged)?;
    show::check("a forged VXLAN packet is dropped, and counted", dropped);
    score.fact("forged VXLAN packet with no agent", "dropped and counted", dropped);
    let start = Instant::now();
    shop.start_agents()?;
    show::took("new agents have taken over what they found", start);
    let lives = live.lives()?;
    show::check("and that connection still goes on", lives);
    score.fact("live connection with new agents", "goes on", lives);
    Ok(())
}

fn count(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(7, "What the agents tell Prometheus (an excerpt)");
    const BLOCKED: &str = r#"verdict="blocked""#;
    let excerpts = [
        (0, "bulkhead_packets_total", r#"workload="web""#),
        (0, "bulkhead_peer_packets_total", r#"workload="web""#),
        (1, "bulkhead_underlay_packets_total", ""),
    ];
    for (node, name, of) in excerpts {
        let (status, page) = shop.agent(node).get("/metrics")?;
        ensure!(status == 200, "/metrics: {status}");
        let about = |line: &&str| line.starts_with(name) && line.contains(BLOCKED) && line.contains(of);
        page.lines().filter(about).for_each(show::sample);
    }
    let mut exact = true;
    for node in 0..shop.lab.topology.nodes().len() {
        let before = blocked(&shop.counters(node)?);
        let agent = shop.agent(node);
        let [of_workloads, of_node] =
            ["bulkhead_packets_total", "bulkhead_underlay_packets_total"].map(|name| agent.metric(name, &[BLOCKED]));
        let told = of_workloads? + of_node?;
        // Something may be blocked at this very moment.
        exact &= (before as f64..=blocked(&shop.counters(node)?) as f64).contains(&told);
    }
    show::check("on both nodes the sum of what was blocked equals the kernel's counters", exact);
    score.fact("metrics against the kernel's counters", "equal", exact);
    Ok(())
}

/// Packets that were blocked. What was only flooded to the wrong link, and what the input rule dropped, has metrics of its own.
fn blocked(readings: &[Reading]) -> u64 {
    let blocked = |reading: &&Reading| {
        reading.reason.blocked() && reading.reason != Reason::NotForUs && reading.rule != INPUT_RULE
    };
    readings.iter().filter(blocked).map(|reading| reading.packets).sum()
}
