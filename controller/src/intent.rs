//! `kind: Intent`: what owners of services write.

use std::{collections::BTreeMap, fmt};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::{diagnostic::Place, policy::Reader, ports::Ports, yaml::Entries};

/// One document.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Namespace that it speaks of.
    pub namespace: String,
    /// It is judged beside what is enforced, and reported.
    pub audit: bool,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Its walls report instead of blocking.
    pub audit: bool,
    /// It has walls and nothing else: who others mean by its name is told by the service label, as if it were not listed.
    pub walls_only: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|entity| entity.name() == text)
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Fields of a document, as they are written.
pub(crate) struct Fields {
    pub(crate) namespace: Spanned<String>,
    pub(crate) mode: Option<Spanned<String>>,
    pub(crate) dns: Option<Spanned<String>>,
    pub(crate) external: Entries<ExternalFields>,
    pub(crate) services: Entries<Option<ServiceFields>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExternalFields {
    pub(crate) cidrs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) except: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceFields {
    pub(crate) select: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    pub(crate) accepts: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) calls: Vec<Spanned<String>>,
    pub(crate) isolate: Option<Spanned<String>>,
}

impl Reader<'_> {
    pub(crate) fn intent(&mut self, document: Fields) -> Intent {
        let namespace = self.name(&document.namespace, "a namespace");
        let audit = self.audit(document.mode.as_ref());
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
        Intent { namespace, audit, dns, external, services }
    }

    fn service(&mut self, namespace: &str, name: &Spanned<String>, fields: ServiceFields) -> Service {
        let text = self.declared(name, "a service");
        let isolate = fields.isolate.as_ref();
        let audit = isolate.is_some_and(|isolate| isolate.value == "audit");
        if let Some(isolate) = isolate.filter(|_| !audit) {
            let help = "write `isolate: audit` to report only, or remove it: to list a service is to isolate it";
            self.error(isolate, format!("isolate `{}` is not known", isolate.value), help);
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
        let select = fields.select.map(|select| select.value);
        Service { name: text, place: self.at(name), select, audit, walls_only: false, accepts, calls }
    }

    fn line(&mut self, namespace: &str, written: &Spanned<String>) -> Option<Line> {
        let text = &written.value;
        if self.address(written) {
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
