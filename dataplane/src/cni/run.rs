//! One call of the plugin.

use std::{io::Read, path::Path, time::Instant};

use serde_json::{Value, json};

use super::{
    Code, Error, ask,
    ask::Patience,
    call::{Subject, Verb, verb},
    close::close,
    config::{Config, Mode, OnTimeout, VERSIONS, interfaces},
    links, protocol,
    protocol::{Ask, Attached, Key, Request},
    spool,
};

/// What is written to standard output; nothing for most verbs.
pub type Output = Option<Value>;

/// Serves a call.
///
/// # Errors
/// What is to be told to the runtime, and in which version.
pub fn run(variable: impl Fn(&str) -> Option<String>, input: impl Read) -> Result<Output, (&'static str, Error)> {
    let newest = VERSIONS[VERSIONS.len() - 1];
    let verb = verb(&variable).map_err(|error| (newest, error))?;
    if verb == Verb::Version {
        // Nothing else of the configuration matters, not even whether there is one.
        let version = Config::read(input).map_or(newest, |config| config.version);
        return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    let config = Config::read(input)?;
    let serve = || match verb {
        Verb::Gc => gc(&config),
        Verb::Status => status(&config),
        Verb::Add => add(&config, &Subject::read(verb, &variable)?),
        Verb::Check => check(&config, &Subject::read(verb, &variable)?),
        Verb::Del => Ok(del(&config, &Subject::read(verb, &variable)?)),
        Verb::Version => Ok(None),
    };
    serve().map_err(|error| (config.version, error))
}

fn request(config: &Config, ask: Ask) -> Request {
    Request { version: protocol::VERSION, network: config.network.clone(), waits: false, ask }
}

fn patience(config: &Config, for_agent: bool) -> Patience {
    Patience { until: Instant::now() + config.timeout, for_agent }
}

fn namespace<'a>(config: &'a Config, subject: &'a Subject) -> &'a str {
    subject.namespace.as_deref().unwrap_or(&config.namespace)
}

fn mode(config: &Config, subject: &Subject) -> Mode {
    config.mode_of(namespace(config, subject))
}

fn key(subject: &Subject) -> Key {
    Key { container: subject.container.clone(), ifname: subject.ifname.clone() }
}

/// Who is attached, and by which links.
fn attached(config: &Config, subject: &Subject) -> Result<Attached, Error> {
    let mut found = Vec::new();
    for interface in interfaces(config.previous.as_ref(), &subject.ifname)? {
        // What the result calls a sandbox is the namespace of the call; a plugin may write it otherwise.
        let netns = subject.netns.as_deref().unwrap_or(Path::new(&interface.sandbox));
        let (link, ifindex) = links::host_side(netns, &interface.name)?;
        let (name, addresses) = (interface.name, interface.addresses);
        found.push(protocol::Interface { name, link, ifindex, addresses });
    }
    Ok(Attached {
        key: key(subject),
        namespace: namespace(config, subject).to_owned(),
        name: subject.name.clone().unwrap_or_else(|| subject.container.clone()),
        uid: subject.uid.clone(),
        labels: config.labels.clone(),
        interfaces: found,
    })
}

fn add(config: &Config, subject: &Subject) -> Result<Output, Error> {
    let mode = mode(config, subject);
    let guarded = attached(config, subject).and_then(|attached| match mode {
        Mode::Enforce => guard(config, attached),
        Mode::Observe => {
            let told = request(config, Ask::Add(attached));
            ask::tell(&config.socket, &told).map_err(|error| Error::new(Code::AgentAway, error.to_string(), ""))
        }
    });
    match guarded {
        Err(error) if mode == Mode::Enforce => Err(error),
        // A runtime takes an ADD without a result for one that failed.
        _ => Ok(Some(config.previous.clone().unwrap_or_else(|| json!({ "cniVersion": config.version })))),
    }
}

/// Holds until the policy is in force.
fn guard(config: &Config, attached: Attached) -> Result<(), Error> {
    let asked = Request { waits: true, ..request(config, Ask::Add(attached)) };
    let error = match ask::ask(&config.socket, &asked, patience(config, true)) {
        Err(error) if matches!(error.code, Code::AgentAway | Code::TimedOut) => error,
        done => return done,
    };
    let Ask::Add(attached) = &asked.ask else { return Err(error) };
    if config.on_timeout == OnTimeout::Fail {
        return Err(error);
    }
    for interface in &attached.interfaces {
        close(&config.pins, &interface.link).map_err(|why| {
            let message = format!("{}, and link {} cannot be shut meanwhile: {why}", error.message, interface.link);
            Error::new(Code::Link, message, error.details.clone())
        })?;
    }
    // For an agent that comes later.
    spool::write(&config.socket, &asked).map_err(|why| {
        let message = format!("{}, and it cannot be written down for an agent that comes later: {why}", error.message);
        Error::new(Code::Io, message, error.details.clone())
    })
}

fn check(config: &Config, subject: &Subject) -> Result<Output, Error> {
    let ask = |attached| ask::ask(&config.socket, &request(config, Ask::Check(attached)), patience(config, false));
    match attached(config, subject).and_then(ask) {
        Err(error) if mode(config, subject) == Mode::Enforce => {
            let code = if error.code == Code::Refused { Code::Drift } else { error.code };
            Err(Error { code, ..error })
        }
        _ => Ok(None),
    }
}

/// Never fails: the runtime would keep what is gone. An agent that is away finds out by itself.
fn del(config: &Config, subject: &Subject) -> Output {
    let key = key(subject);
    spool::forget(&config.socket, &key);
    let gone = request(config, Ask::Del { key });
    let _ = match mode(config, subject) {
        Mode::Enforce => ask::ask(&config.socket, &gone, patience(config, false)),
        Mode::Observe => ask::tell(&config.socket, &gone).map_err(|error| Error::new(Code::Io, error.to_string(), "")),
    };
    None
}

fn gc(config: &Config) -> Result<Output, Error> {
    let Some(valid) = &config.valid else {
        return Err(Error::new(
            Code::Configuration,
            "GC without `cni.dev/valid-attachments`",
            "a runtime lists what it knows there",
        ));
    };
    let valid = valid.iter().map(|known| Key { container: known.container.clone(), ifname: known.ifname.clone() });
    let valid: Vec<Key> = valid.collect();
    spool::keep(&config.socket, &config.network, &valid);
    match ask::ask(&config.socket, &request(config, Ask::Gc { valid }), patience(config, false)) {
        Err(error) if config.mode == Mode::Enforce => Err(error),
        // An agent that comes later finds out by itself who is gone.
        _ => Ok(None),
    }
}

fn status(config: &Config) -> Result<Output, Error> {
    if config.mode == Mode::Observe {
        return Ok(None);
    }
    ask::ask(&config.socket, &request(config, Ask::Status), patience(config, false))
        .map(|()| None)
        .map_err(|error| Error { code: Code::Unavailable, ..error })
}
