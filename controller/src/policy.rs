//! Files of policies: documents of each kind, in any order.

use std::{net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, Source},
    guard::{self, Guard},
    intent::{self, Cidrs, Entity, External, ExternalFields, Intent, ServiceFields, contains, valid_name},
    manifest::Manifests,
    network_policy::NetworkPolicy,
    ports::decimal,
    yaml::{self, Checked, Entries, Family, Kind, at, tree},
};

/// A document.
#[derive(Clone, Debug)]
pub enum Policy {
    /// What owners of services write.
    Intent(Intent),
    /// What owners of the platform write.
    Guard(Guard),
    /// What Kubernetes calls a policy.
    Network(NetworkPolicy),
    /// What somebody should look at in a file whose policies are used.
    Noted(Diagnostic),
}

impl Policy {
    /// Makes of services what a file is about that never was good: walls without a door.
    pub(crate) fn walls_only(&mut self) {
        if let Self::Intent(intent) = self {
            intent.services.iter_mut().for_each(|service| service.walls_only = true);
        }
    }
}

const INTENT: Kind = Kind { name: "Intent", fields: &["namespace", "mode", "dns", "external", "services"] };
const GUARD: Kind =
    Kind { name: "Guard", fields: &["name", "priority", "mode", "for", "compare", "external", "rules"] };

/// The fields of every kind: the reader of YAML takes documents of one type only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: Checked,
    kind: String,
    mode: Option<Spanned<String>>,
    external: Option<Spanned<Entries<ExternalFields>>>,
    namespace: Option<Spanned<String>>,
    dns: Option<Spanned<String>>,
    services: Option<Spanned<Entries<Option<ServiceFields>>>>,
    name: Option<Spanned<String>>,
    priority: Option<Spanned<String>>,
    #[serde(rename = "for")]
    subjects: Option<Spanned<guard::SubjectFields>>,
    compare: Option<Spanned<String>>,
    rules: Option<Spanned<Vec<Spanned<guard::RuleFields>>>>,
}

/// Reads all documents of a file: ours, or those of Kubernetes, of which only policies say something here.
///
/// # Errors
/// Everything that is wrong with it; nothing of the file is used then.
pub fn parse(source: &Arc<Source>) -> Result<Vec<Policy>, Diagnostics> {
    // What is wrong with the text is said below.
    if let Ok(documents) = tree::documents(source)
        && let Some(policies) = read(source, &documents)
    {
        return policies;
    }
    let documents = yaml::documents_of::<Document>(source, &[INTENT, GUARD], |kind| match kind {
        "Workloads" => {
            Some("the workloads file is given by `--workloads` and stands outside the directory of policies")
        }
        _ => None,
    })?;
    let mut found = Diagnostics::default();
    let policies = documents
        .into_iter()
        .filter_map(|document| {
            let here = at(source, &document);
            Reader { source, found: &mut found }.document(document.value, &here)
        })
        .collect();
    found.or(policies)
}

/// Reads the documents of a file where they are objects of Kubernetes; `None` for those of `bulkhead/v1`, which are read from the text.
///
/// # Errors
/// See [`parse`].
pub(crate) fn read(source: &Arc<Source>, documents: &[tree::Item]) -> Option<Result<Vec<Policy>, Diagnostics>> {
    let mut manifests = Manifests::default();
    let is_theirs = yaml::family_of(documents) == Family::Manifests;
    is_theirs.then(|| manifests.take(source, documents).map(|()| manifests.only_policies()))
}

/// Turns what was deserialized into what is meant, and collects what is wrong.
pub(crate) struct Reader<'a> {
    pub(crate) source: &'a Arc<Source>,
    pub(crate) found: &'a mut Diagnostics,
}

impl Reader<'_> {
    pub(crate) fn at<T>(&self, value: &Spanned<T>) -> Place {
        at(self.source, value)
    }

    pub(crate) fn error<T>(&mut self, value: &Spanned<T>, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(&self.at(value), message).help(help));
    }

    fn document(&mut self, document: Document, here: &Place) -> Option<Policy> {
        let Document { mode, external, namespace, dns, services, name, priority, subjects, compare, rules, .. } =
            document;
        if document.kind == INTENT.name {
            self.foreign(&INTENT, "name", name.as_ref());
            self.foreign(&INTENT, "priority", priority.as_ref());
            self.foreign(&INTENT, "for", subjects.as_ref());
            self.foreign(&INTENT, "compare", compare.as_ref());
            self.foreign(&INTENT, "rules", rules.as_ref());
            let namespace = self.required(here, "namespace", namespace);
            let services = self.required(here, "services", services);
            let external = external.map(|external| external.value).unwrap_or_default();
            let fields = intent::Fields { namespace: namespace?, mode, dns, external, services: services?.value };
            Some(Policy::Intent(self.intent(fields)))
        } else {
            self.foreign(&GUARD, "namespace", namespace.as_ref());
            self.foreign(&GUARD, "dns", dns.as_ref());
            self.foreign(&GUARD, "services", services.as_ref());
            let name = self.required(here, "name", name);
            let priority = self.required(here, "priority", priority);
            let rules = self.required(here, "rules", rules);
            let external = external.map(|external| external.value).unwrap_or_default();
            let (name, priority, rules) = (name?, priority?, rules?);
            let fields = guard::Fields { name, priority, mode, subjects, compare, external, rules };
            Some(Policy::Guard(self.guard(fields)))
        }
    }

    /// A field of the other kind.
    fn foreign<T>(&mut self, kind: &Kind, field: &str, value: Option<&Spanned<T>>) {
        let Some(value) = value else { return };
        let other = if kind.name == INTENT.name { &GUARD } else { &INTENT };
        let help = format!(
            "it belongs to `kind: {}`; `kind: {}` has {}",
            other.name,
            kind.name,
            kind.fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ")
        );
        self.error(value, format!("`{field}` is no field of `kind: {}`", kind.name), help);
    }

    fn required<T>(&mut self, here: &Place, field: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.found.push(Diagnostic::error(here, format!("`{field}` is missing")).help(format!("add `{field}:`")));
        }
        value
    }

    /// Whether a `mode` says audit.
    pub(crate) fn audit(&mut self, mode: Option<&Spanned<String>>) -> bool {
        match mode.map(|mode| (mode, mode.value.as_str())) {
            None | Some((_, "enforce")) => false,
            Some((_, "audit")) => true,
            Some((mode, other)) => {
                let help = "write `mode: enforce`, or `mode: audit` to report only";
                self.error(mode, format!("mode `{other}` is not known"), help);
                false
            }
        }
    }

    pub(crate) fn name(&mut self, name: &Spanned<String>, of: &str) -> String {
        if !valid_name(&name.value) {
            let help = "1 to 63 letters, digits, `-`, `_` or `.`, a letter or digit at both ends";
            self.error(name, format!("`{}` cannot be the name of {of}", name.value), help);
        }
        name.value.clone()
    }

    pub(crate) fn declared(&mut self, name: &Spanned<String>, of: &str) -> String {
        if Entity::parse(&name.value).is_some() {
            self.error(
                name,
                format!("`{}` is an entity and cannot be the name of {of}", name.value),
                "choose another name",
            );
        }
        self.name(name, of)
    }

    pub(crate) fn external(&mut self, name: &Spanned<String>, fields: &ExternalFields) -> External {
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
        let Some(net) = prefix(&written.value) else {
            self.error(
                written,
                format!("`{}` is not a prefix", written.value),
                "write `198.51.100.0/24` or `2001:db8::/32`",
            );
            return None;
        };
        if let Some((message, help)) = disguised(&written.value, net) {
            self.error(written, message, help);
            return None;
        }
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

    /// Whether a peer is written as an address, which is told.
    pub(crate) fn address(&mut self, written: &Spanned<String>) -> bool {
        let text = written.value.as_str();
        let before = text.rsplit_once(':').map_or(text, |(before, _)| before);
        let found = [text, before].into_iter().any(|text| prefix(text.trim_matches(['[', ']'])).is_some());
        if found {
            let help = "give it a name: `external: { stripe: { cidrs: [198.51.100.0/24] } }`, then write `stripe:443`";
            self.error(written, format!("`{text}` has an address where a name is expected"), help);
        }
        found
    }
}

/// Reads a prefix, or an address as the prefix of itself. A length is a plain number: nothing that others would read as another one.
fn prefix(text: &str) -> Option<IpNetwork> {
    let Some((address, length)) = text.split_once('/') else { return text.parse().ok().map(IpAddr::into) };
    let length = decimal(length).and_then(|length| u8::try_from(length).ok())?;
    IpNetwork::new(address.parse().ok()?, length).ok()
}

/// What is wrong with an IPv6 prefix that stands for one of IPv4, and how to mend it.
pub(crate) fn disguised(text: &str, net: IpNetwork) -> Option<(String, &'static str)> {
    let IpNetwork::V6(of) = net else { return None };
    let message = || format!("`{text}` is an IPv4 prefix in the clothes of IPv6");
    of.ip().to_ipv4_mapped().map(|_| (message(), "write the IPv4 prefix itself: packets carry its addresses"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_in_one_way() {
        for (text, meant) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.1.2.3/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(prefix(text).map(|net| net.to_string()).as_deref(), Some(meant));
        }
        for wrong in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/255.0.0.0",
            "010.0.0.0/8",
            "10.0.0/8",
            "::/129",
            "fe80::%1/64",
        ] {
            assert_eq!(prefix(wrong), None, "{wrong}");
        }
    }
}
