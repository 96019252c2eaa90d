//! `kind: Intent`: what owners of services write.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ipnetwork::IpNetwork;
use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::Spanned;

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, Source},
    ports::Ports,
    yaml::{self, Checked, Entries, at},
};

/// One document.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Namespace that it speaks of.
    pub namespace: String,
    /// Where `dns: cluster` stands, if it does.
    pub dns: Option<Place>,
    /// Peers without a container.
    pub external: Vec<External>,
    /// Services, which it isolates.
    pub services: Vec<Service>,
}

/// A named peer without a container.
#[derive(Clone, Debug)]
pub struct External {
    /// Name.
    pub name: String,
    /// Where its name stands.
    pub place: Place,
    /// Addresses.
    pub cidrs: Cidrs,
}

/// Addresses by prefix. Sorted and without duplicates, so that equal ones have equal text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidrs {
    /// Prefixes; an address in any of them belongs.
    pub cidrs: Vec<IpNetwork>,
    /// Prefixes whose addresses do not belong all the same.
    pub except: Vec<IpNetwork>,
}

impl fmt::Display for Cidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |nets: &[IpNetwork]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        f.write_str(&join(&self.cidrs))?;
        if !self.except.is_empty() {
            write!(f, " except {}", join(&self.except))?;
        }
        Ok(())
    }
}

/// A service that is listed.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Where its name stands.
    pub place: Place,
    /// Labels that its workloads have; `None` for the service label with the service's name.
    pub select: Option<BTreeMap<String, String>>,
    /// Who may call it.
    pub accepts: Vec<Line>,
    /// Whom it may call.
    pub calls: Vec<Line>,
}

/// One item of `accepts` or `calls`.
#[derive(Clone, Debug)]
pub struct Line {
    /// The other side.
    pub peer: PeerName,
    /// Ports on the side that listens.
    pub ports: Ports,
    /// Where it stands.
    pub place: Place,
}

/// A peer as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// A service or external of the same namespace.
    Local(String),
    /// A service of another namespace.
    Remote {
        /// Namespace.
        namespace: String,
        /// Service.
        name: String,
    },
    /// What has its name from us.
    Entity(Entity),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(name) => f.write_str(name),
            Self::Remote { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Entity(entity) => entity.fmt(f),
        }
    }
}

/// Peers that have their names from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// Every workload that is known.
    Cluster,
    /// The link-local addresses where clouds keep credentials.
    Metadata,
    /// The workload's own node.
    Node,
    /// Every node.
    Nodes,
    /// Everything outside.
    World,
}

impl Entity {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Metadata, Self::Node, Self::Nodes, Self::World];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Metadata => "metadata",
            Self::Node => "node",
            Self::Nodes => "nodes",
            Self::World => "world",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|entity| entity.name() == text)
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: Checked,
    #[serde(rename = "kind")]
    _kind: Checked,
    namespace: Spanned<String>,
    mode: Option<Spanned<String>>,
    dns: Option<Spanned<String>>,
    #[serde(default)]
    external: Entries<ExternalFields>,
    services: Entries<Option<ServiceFields>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalFields {
    cidrs: Vec<Spanned<String>>,
    #[serde(default)]
    except: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ServiceFields {
    select: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    accepts: Vec<Spanned<String>>,
    #[serde(default)]
    calls: Vec<Spanned<String>>,
    isolate: Option<Spanned<IgnoredAny>>,
}

/// Reads all documents of a file.
///
/// # Errors
/// Everything that is wrong with it; nothing of the file is used then.
pub fn parse(source: &Arc<Source>) -> Result<Vec<Intent>, Diagnostics> {
    let documents = yaml::documents::<Document>(source, "Intent", |kind| match kind {
        "Guard" => Some("`Guard` is not supported yet by this version: remove the document"),
        "Workloads" => {
            Some("the workloads file is given by `--workloads` and stands outside the directory of policies")
        }
        _ => None,
    })?;
    let mut found = Diagnostics::default();
    let intents =
        documents.into_iter().map(|document| Reader { source, found: &mut found }.intent(document.value)).collect();
    found.or(intents)
}

/// Turns what was deserialized into what is meant, and collects what is wrong.
struct Reader<'a> {
    source: &'a Arc<Source>,
    found: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn at<T>(&self, value: &Spanned<T>) -> Place {
        at(self.source, value)
    }

    fn error<T>(&mut self, value: &Spanned<T>, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(&self.at(value), message).help(help));
    }

    fn name(&mut self, name: &Spanned<String>, of: &str) -> String {
        if !valid_name(&name.value) {
            let help = "1 to 63 letters, digits, `-`, `_` or `.`, a letter or digit at both ends";
            self.error(name, format!("`{}` cannot be the name of {of}", name.value), help);
        }
        name.value.clone()
    }

    fn intent(&mut self, document: Document) -> Intent {
        let namespace = self.name(&document.namespace, "a namespace");
        match &document.mode {
            Some(mode) if mode.value == "audit" => {
                self.error(
                    mode,
                    "`mode: audit` is not supported yet by this version",
                    "write `mode: enforce`, or keep the document elsewhere",
                );
            }
            Some(mode) if mode.value != "enforce" => {
                self.error(mode, format!("mode `{}` is not known", mode.value), "write `mode: enforce`");
            }
            _ => {}
        }
        let dns = document.dns.as_ref().and_then(|dns| match dns.value.as_str() {
            "cluster" => Some(self.at(dns)),
            "none" => None,
            other => {
                self.error(
                    dns,
                    format!("dns `{other}` is not known"),
                    "write `dns: cluster`, or leave it out for none",
                );
                None
            }
        });
        let external = document.external.0.into_iter().map(|(name, fields)| self.external(&name, &fields)).collect();
        let services = document
            .services
            .0
            .into_iter()
            .map(|(name, fields)| self.service(&namespace, &name, fields.unwrap_or_default()))
            .collect();
        Intent { namespace, dns, external, services }
    }

    fn declared(&mut self, name: &Spanned<String>, of: &str) -> String {
        if Entity::parse(&name.value).is_some() {
            self.error(
                name,
                format!("`{}` is an entity and cannot be the name of {of}", name.value),
                "choose another name",
            );
        }
        self.name(name, of)
    }

    fn external(&mut self, name: &Spanned<String>, fields: &ExternalFields) -> External {
        let text = self.declared(name, "an external");
        if fields.cidrs.is_empty() {
            self.error(
                name,
                format!("external `{text}` has no prefixes and would match nobody"),
                "write `cidrs: [198.51.100.0/24]`",
            );
        }
        let mut cidrs: Vec<IpNetwork> = fields.cidrs.iter().filter_map(|cidr| self.network(cidr)).collect();
        let mut except = Vec::new();
        for written in &fields.except {
            let Some(net) = self.network(written) else { continue };
            if !cidrs.iter().any(|&outer| contains(outer, net)) {
                self.error(
                    written,
                    format!("{net} is not inside any of the prefixes of `{text}`"),
                    "an exception must lie in one of `cidrs`; remove or correct it",
                );
            }
            except.push(net);
        }
        for nets in [&mut cidrs, &mut except] {
            nets.sort_unstable();
            nets.dedup();
        }
        External { name: text, place: self.at(name), cidrs: Cidrs { cidrs, except } }
    }

    fn network(&mut self, written: &Spanned<String>) -> Option<IpNetwork> {
        let Ok(net) = written.value.parse::<IpNetwork>() else {
            self.error(
                written,
                format!("`{}` is not a prefix", written.value),
                "write `198.51.100.0/24` or `2001:db8::/32`",
            );
            return None;
        };
        let whole = IpNetwork::new(net.network(), net.prefix()).ok()?;
        if net != whole {
            self.error(
                written,
                format!("{net} has bits set behind its prefix"),
                format!("write `{whole}`, or `{}` for the one address", net.ip()),
            );
            return None;
        }
        Some(net)
    }

    fn service(&mut self, namespace: &str, name: &Spanned<String>, fields: ServiceFields) -> Service {
        let text = self.declared(name, "a service");
        if let Some(isolate) = &fields.isolate {
            self.error(
                isolate,
                "`isolate` is not supported yet by this version",
                "remove it: to list a service is to isolate it",
            );
        }
        if let Some(select) = &fields.select
            && select.value.is_empty()
        {
            let help = "write the labels that its workloads have; to select by the service label leave `select` out";
            self.error(
                select,
                format!("`select` of `{text}` is empty and would select every workload of the namespace"),
                help,
            );
        }
        let accepts = fields.accepts.iter().filter_map(|line| self.line(namespace, line)).collect();
        let calls = fields.calls.iter().filter_map(|line| self.line(namespace, line)).collect();
        Service { name: text, place: self.at(name), select: fields.select.map(|select| select.value), accepts, calls }
    }

    fn line(&mut self, namespace: &str, written: &Spanned<String>) -> Option<Line> {
        let text = &written.value;
        let prefix = text.rsplit_once(':').map_or(text.as_str(), |(prefix, _)| prefix);
        if [text.as_str(), prefix].into_iter().any(|text| text.trim_matches(['[', ']']).parse::<IpNetwork>().is_ok()) {
            let help = "give it a name: `external: { stripe: { cidrs: [198.51.100.0/24] } }`, then write `stripe:443`";
            self.error(written, format!("`{text}` has an address where a name is expected"), help);
            return None;
        }
        let Some((peer, ports)) = text.split_once(':') else {
            self.error(
                written,
                format!("`{text}` has no port"),
                format!("write `{text}:8080`, or `{text}:any` for every protocol and port"),
            );
            return None;
        };
        let ports = match Ports::parse(ports) {
            Ok(ports) => ports,
            Err((message, help)) => {
                self.error(written, format!("`{text}`: {message}"), help);
                return None;
            }
        };
        let peer = match peer.split_once('/') {
            None => Entity::parse(peer).map_or_else(|| PeerName::Local(peer.to_owned()), PeerName::Entity),
            Some((of, name)) if of == namespace => PeerName::Local(name.to_owned()),
            Some((of, name)) => PeerName::Remote { namespace: of.to_owned(), name: name.to_owned() },
        };
        let valid = match &peer {
            PeerName::Local(name) => valid_name(name),
            PeerName::Remote { namespace, name } => valid_name(namespace) && valid_name(name),
            PeerName::Entity(_) => true,
        };
        if !valid {
            self.error(
                written,
                format!("`{text}` does not begin with a peer"),
                "write `cart:8080`, `ops/backup:5432` for a service of another namespace, or `world:443`",
            );
            return None;
        }
        Some(Line { peer, ports, place: self.at(written) })
    }
}

/// Whether something that people name may have this name: what labels' values allow.
pub(crate) fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether `inner` lies in `outer`, or is it.
pub(crate) fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    match (outer, inner) {
        (IpNetwork::V4(outer), IpNetwork::V4(inner)) => inner.is_subnet_of(outer),
        (IpNetwork::V6(outer), IpNetwork::V6(inner)) => inner.is_subnet_of(outer),
        _ => false,
    }
}
