//! The story, step by step.

use std::{
    net::TcpStream,
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_controller::show::time;
use bulkhead_dataplane::{kernel::INPUT_RULE, node::Reading};
use bulkhead_ebpf::reason::Reason;
use bulkhead_topology::traffic::{Outcome, echo};

use crate::{
    audit,
    calls::{Answer, Ask, BRIEF, Call, PATIENCE, everybody, guarded, table, unguarded},
    forgery, kept,
    score::Score,
    service,
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
    show::step(11, "What was tried");
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
    translated(shop, score)?;
    guard(shop, score)?;
    observe(shop, score)?;
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
    let more = unguarded(shop, &[TRANSLATED, METADATA].concat())?;
    let [v4, v6] = service::ADDRESSES;
    show::say(&format!(
        "payments has a service address, too, {v4} and {v6}: on both nodes nftables translates its port {} to payments:{}, as kube-proxy does.",
        service::PORT,
        service::TARGET
    ));
    let (translated, credentials) = more.split_at(TRANSLATED.len());
    show::check("cart and web get an answer by it", translated.iter().all(Answer::agrees));
    show::say("From the metadata address, here on the third host, a cloud's machine gets its credentials.");
    show::check("web and backup get an answer from it", credentials.iter().all(Answer::agrees));
    score.calls("calls without a policy", &[answers, more].concat());
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

/// By the service address, whose backend is on the other node than cart and web.
const TRANSLATED: [Call; 2] =
    [Call::tcp("cart", service::NAME, service::PORT), Call::tcp("web", service::NAME, service::PORT)];

fn translated(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(4, "The same by a service address");
    let [v4, v6] = service::ADDRESSES;
    show::say(&format!(
        "cart and web call {v4} and {v6}, port {}. A policy names services and the ports of their containers, and is asked about who answers in the end:",
        service::PORT
    ));
    let answers = guarded(shop, &TRANSLATED)?;
    answers.iter().for_each(Answer::tell);
    score.calls("calls of payments' service address", &answers);
    Ok(())
}

/// Of the address from which clouds give away credentials.
const METADATA: [Call; 2] = [Call::tcp("web", "metadata", 80), Call::tcp("backup", "metadata", 80)];
/// A Guard.
const GUARD: &str = include_str!("../policies/guard.yaml");
/// Its name, in the directory of policies and in every reason.
const GUARD_FILE: &str = "guard.yaml";

fn guard(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(5, "A Guard: what no Intent can open");
    show::say(&format!(
        "Somebody edits {POLICY_FILE} and lets web ask for the machine's credentials; backup is in no Intent and may ask everybody:"
    ));
    let (number, line, edited) = leak()?;
    show::changed(number, line, &edited);
    shop.edit(POLICY_FILE, &POLICY.replace(line, &edited))?;
    let answers = guarded(shop, &METADATA)?;
    answers.iter().for_each(Answer::tell);
    ensure!(answers.iter().all(|answer| answer.expected.allowed), "the edit allows nothing");
    score.calls("calls of the metadata address without a Guard", &answers);
    show::say(&format!("Whoever owns the platform puts {GUARD_FILE} beside it:"));
    show::policy(GUARD);
    let start = Instant::now();
    shop.edit(GUARD_FILE, GUARD)?;
    show::took("both agents have put it in force", start);
    let answers = guarded(shop, &METADATA)?;
    answers.iter().for_each(Answer::tell);
    ensure!(answers.iter().all(|answer| !answer.expected.allowed), "the Guard denies nothing");
    score.calls("calls of the metadata address with the Guard", &answers);
    Ok(())
}

/// Web's line before and after somebody lets it call the metadata address.
fn leak() -> Result<(usize, &'static str, String)> {
    const RULE: &str = "[cart:8080]             ";
    let (number, line) = line_with(RULE)?;
    Ok((number, line, line.replace(RULE, "[cart:8080, metadata:80] ")))
}

/// Line that makes a service audited.
const AUDIT: &str = "    isolate: audit";

/// The line that it follows.
fn before_audit() -> Result<(usize, &'static str)> {
    line_with("calls: [db:5432, stripe:443]")
}

fn observe(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(6, "An audited service: its walls report and do not block");
    show::say(&format!(
        "Nobody knows yet who else needs payments. {POLICY_FILE} is edited again, and web's line put back:"
    ));
    let (number, line, leaking) = leak()?;
    show::changed(number, &leaking, line);
    let (number, line) = before_audit()?;
    show::added(number + 1, AUDIT);
    shop.edit(POLICY_FILE, &POLICY.replace(line, &format!("{line}\n{AUDIT}")))?;
    let calls = [
        Call::tcp("backup", audit::SERVICE, 9090),
        Call::tcp(audit::SERVICE, "thief", 443),
        Call::tcp(audit::SERVICE, "db", 5432),
        Call::tcp("web", audit::SERVICE, 9090),
    ];
    let answers = guarded(shop, &calls)?;
    answers.iter().for_each(Answer::tell);
    ensure!(answers.iter().any(audit::would_be_blocked), "the edit audits nothing");
    score.calls("calls with payments audited", &answers);
    show::say("What would have been blocked, as n2's kernel has counted and sampled it:");
    let reported = audit::reported(shop, &answers)?;
    show::check("these are the calls that pass and would be blocked, and no others", reported);
    score.fact("calls that pass and would be blocked", "counted and sampled", reported);
    Ok(())
}

/// The policy's line that has this in it, and its number.
fn line_with(text: &str) -> Result<(usize, &'static str)> {
    (1..).zip(POLICY.lines()).find(|(_, line)| line.contains(text)).context("no such line in the policy")
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
    show::step(7, "A rule is revoked, and a live connection is cut");
    let mut cart = Live::open(shop, "cart", "db", 5432)?;
    let mut payments = Live::open(shop, "payments", "db", 5432)?;
    show::say(&format!("cart and payments each hold a connection to db. {POLICY_FILE} is edited, and the audit ends:"));
    let (number, line) = line_with(RULE)?;
    let edited = line.replace(RULE, "]");
    show::changed(number, line, &edited);
    show::removed(before_audit()?.0 + 1, AUDIT);
    let start = Instant::now();
    shop.edit(POLICY_FILE, &POLICY.replace(line, &edited))?;
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
    shop.edit(POLICY_FILE, POLICY)?;
    let answers = guarded(shop, &call)?;
    show::say("The line is put back:");
    answers.iter().for_each(Answer::tell);
    score.calls("new call cart -> db with the rule again", &answers);
    Ok(())
}

fn forge(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(8, "Forged VXLAN packets from the third host");
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

/// What a rule allows for some seconds.
const LENT: Call = Call::tcp("backup", "cart", 8080);
/// How long. A machine that is so busy that this is over before the call is made gets more, up to [`LONGEST`].
const SHORTEST: u64 = 5;
const LONGEST: u64 = 80;

/// A connection by a rule that ends.
struct Loan {
    ends: SystemTime,
    live: Live,
    answers: Vec<Answer>,
}

impl Loan {
    /// Until the rule has ended for sure.
    fn wait(&self, shop: &Shop) -> Result<()> {
        while SystemTime::now() < self.ends + Duration::from_millis(200) {
            shop.stop.check()?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The end as policies write it.
    fn written(&self) -> String {
        written(self.ends)
    }
}

fn written(at: SystemTime) -> String {
    let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    time(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)).replace(".000Z", "Z")
}

/// Writes the rule, and opens a connection while it holds.
fn lend(shop: &Shop) -> Result<Loan> {
    let mut seconds = SHORTEST;
    loop {
        let start = Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let ends = UNIX_EPOCH + Duration::from_secs(now + 1 + seconds);
        let text = format!(
            "apiVersion: bulkhead/v1\nkind: Guard\nname: repair\npriority: 20\nfor: {{ services: [shop/cart] }}\nrules:\n  \
             - allow: {{ from: ops/backup, ports: [8080], expires: {} }}\n",
            written(ends)
        );
        shop.edit("repair.yaml", &text)?;
        let put = start.elapsed();
        let live = Live::open(shop, LENT.from, LENT.to, 8080);
        let answers = guarded(shop, &[LENT])?;
        if SystemTime::now() + Duration::from_secs(1) < ends {
            ensure!(answers.iter().all(|answer| answer.expected.allowed), "the rule allows nothing");
            show::policy(&text);
            show::took("both agents have put it in force", Instant::now().checked_sub(put).unwrap_or(start));
            return Ok(Loan { ends, live: live?, answers });
        }
        seconds *= 2;
        ensure!(seconds <= LONGEST, "a rule of {} seconds is over before it is used", seconds / 2);
    }
}

fn kill(shop: &mut Shop, score: &mut Score) -> Result<()> {
    show::step(9, "The agents are killed, and a rule ends without them");
    show::say(
        "backup may call cart for some seconds, by a rule that ends. It opens a connection, and payments one to db.",
    );
    let mut loan = lend(shop)?;
    loan.answers.iter().for_each(Answer::tell);
    score.calls("call by a rule that ends", &loan.answers);
    let mut live = Live::open(shop, "payments", "db", 5432)?;
    let ids = shop.kill_agents()?.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    show::say(&format!("kill -KILL {ids}. Nothing of Bulkhead runs now but what is in the kernel."));
    let lives = live.lives()?;
    show::check("payments' connection goes on", lives);
    score.fact("live connection with no agent", "goes on", lives);
    let lives = loan.live.lives()?;
    // On a machine that is very busy it may have ended.
    if lives || SystemTime::now() < loan.ends {
        show::check("backup's goes on, too", lives);
        score.fact("live connection before its rule ends", "goes on", lives);
    }
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
    loan.wait(shop)?;
    show::say(&format!("{} has passed: the rule has ended, and no agent runs.", loan.written()));
    let cut = loan.live.is_cut()?;
    show::check("backup's connection is cut on its next packet", cut);
    score.fact("live connection after its rule has ended, with no agent", "cut", cut);
    let answers = guarded(shop, &[LENT])?;
    answers.iter().for_each(Answer::tell);
    ensure!(answers.iter().all(|answer| !answer.expected.allowed), "the rule does not end");
    score.calls("new call after the rule has ended", &answers);
    let start = Instant::now();
    shop.start_agents()?;
    show::took("new agents have taken over what they found", start);
    let lives = live.lives()?;
    show::check("and payments' connection still goes on", lives);
    score.fact("live connection with new agents", "goes on", lives);
    Ok(())
}

fn count(shop: &Shop, score: &mut Score) -> Result<()> {
    show::step(10, "What the agents tell Prometheus (an excerpt)");
    const BLOCKED: &str = r#"verdict="blocked""#;
    let excerpts = [
        (0, "bulkhead_packets_total", r#"workload="web""#),
        (0, "bulkhead_peer_packets_total", r#"protocol="tcp",service="web""#),
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
