//! A network's configuration as a file: reading it, and our plugin at the end of its chain. Pure.
//!
//! Fields keep their order and values their spelling, so that what is not ours stays as its owner wrote it. Format: CNI 1.1.0, section 1
//! (<https://www.cni.dev/docs/spec/#section-1-network-configuration-format>).

use bulkhead_dataplane::cni::{PLUGIN, config::VERSIONS};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

type Fields = IndexMap<String, Box<RawValue>>;

/// Plugins that make no veth pair, so that there is no link on the host at which packets could be judged.
const NO_VETH: [&str; 8] =
    ["dummy", "host-device", "ib-sriov-cni", "ipvlan", "loopback", "macvlan", "ovs-cni", "sriov"];
/// Older ones, whose results look like those of [`VERSIONS`]' first: the chain is told that one instead.
const RAISED: [&str; 2] = ["0.3.0", "0.3.1"];

/// Why a file is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read as a network's configuration.
    #[error("is no network configuration: {0}")]
    Form(String),
    /// Version of the specification.
    #[error("speaks version {0} of CNI; {PLUGIN} speaks {versions}, and takes 0.3.0 and 0.3.1 for the first of them", versions = VERSIONS.join(", "))]
    Version(String),
    /// Containers of it have no link on the host.
    #[error(
        "is made by the plugin `{0}`, which makes no veth pair: its containers have no link on the node that could be guarded"
    )]
    NoVeth(String),
}

/// A network's configuration.
#[derive(Clone, Debug)]
pub struct Conflist {
    /// Name of the network.
    pub name: String,
    version: String,
    fields: Fields,
    plugins: Vec<Box<RawValue>>,
}

/// What of a plugin's entry matters here.
#[derive(Deserialize)]
struct Entry {
    r#type: String,
}

fn kind(plugin: &RawValue) -> Result<String, Unusable> {
    serde_json::from_str::<Entry>(plugin.get())
        .map(|entry| entry.r#type)
        .map_err(|error| Unusable::Form(error.to_string()))
}

fn raw(value: &impl serde::Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("what is written here has no key that is no string")
}

impl Conflist {
    /// Reads a `.conflist`, or (`single`) a `.conf` or `.json`, which holds one plugin and becomes a list of it.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &[u8], single: bool) -> Result<Self, Unusable> {
        let form = |error: serde_json::Error| Unusable::Form(error.to_string());
        let missing = |field: &str| Unusable::Form(format!("it has no `{field}`"));
        let mut fields: Fields = serde_json::from_slice(text).map_err(form)?;
        let string = |fields: &Fields, field: &str| match fields.get(field) {
            Some(value) => serde_json::from_str::<String>(value.get()).map_err(form),
            None => Err(missing(field)),
        };
        let name = string(&fields, "name")?;
        let version = string(&fields, "cniVersion")?;
        if single {
            let plugin = raw(&fields);
            fields.retain(|field, _| field == "name" || field == "cniVersion");
            fields.insert("plugins".to_owned(), raw(&[plugin]));
        }
        let plugins: Vec<Box<RawValue>> = match fields.get("plugins") {
            Some(plugins) => serde_json::from_str(plugins.get()).map_err(form)?,
            None => return Err(missing("plugins")),
        };
        for plugin in &plugins {
            kind(plugin)?;
        }
        Ok(Self { name, version, fields, plugins })
    }

    /// The same for one whose containers are to be guarded, and that speaks a version that our plugin does.
    ///
    /// # Errors
    /// It is none, or none that can be guarded.
    pub fn guardable(text: &[u8], single: bool) -> Result<Self, Unusable> {
        let mut chain = Self::read(text, single)?;
        let others = chain.plugins.iter().filter(|plugin| !Self::is_ours(plugin));
        let Some(first) = others.map(|plugin| kind(plugin)).next().transpose()? else {
            return Err(Unusable::Form("it has no `plugins` but ours".to_owned()));
        };
        if NO_VETH.contains(&first.as_str()) {
            return Err(Unusable::NoVeth(first));
        }
        if RAISED.contains(&chain.version.as_str()) {
            chain.fields.insert("cniVersion".to_owned(), raw(&VERSIONS[0]));
        } else if !VERSIONS.contains(&chain.version.as_str()) {
            return Err(Unusable::Version(chain.version));
        }
        Ok(chain)
    }

    /// The name of a network in a file that may be unusable.
    #[must_use]
    pub fn name_of(text: &[u8]) -> Option<String> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        serde_json::from_slice::<Named>(text).ok().map(|named| named.name)
    }

    fn is_ours(plugin: &RawValue) -> bool {
        kind(plugin).is_ok_and(|kind| kind == PLUGIN)
    }

    /// Whether our plugin ends the chain, once, with this entry.
    #[must_use]
    pub fn ends_with(&self, entry: &Map<String, Value>) -> bool {
        let last = self.plugins.last().and_then(|plugin| serde_json::from_str::<Map<_, _>>(plugin.get()).ok());
        last.as_ref() == Some(entry) && self.plugins.iter().filter(|plugin| Self::is_ours(plugin)).count() == 1
    }

    /// The text with this entry of ours at the end, and nowhere else.
    #[must_use]
    pub fn with(&self, entry: &Map<String, Value>) -> String {
        self.text(Some(&raw(entry)))
    }

    /// The text without ours.
    #[must_use]
    pub fn without(&self) -> String {
        self.text(None)
    }

    /// Whether ours is in it.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.plugins.iter().any(|plugin| Self::is_ours(plugin))
    }

    fn text(&self, last: Option<&RawValue>) -> String {
        let others = self.plugins.iter().map(AsRef::as_ref).filter(|plugin| !Self::is_ours(plugin));
        let plugins: Vec<_> = others.chain(last).map(|plugin| format!("    {}", plugin.get())).collect();
        let fields = self.fields.iter().map(|(field, value)| {
            let value = if field == "plugins" { format!("[\n{}\n  ]", plugins.join(",\n")) } else { value.to_string() };
            format!("  {}: {value}", Value::from(field.as_str()))
        });
        format!("{{\n{}\n}}\n", fields.collect::<Vec<_>>().join(",\n"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    { "type": "flannel", "delegate": { "mtu": 1e3, "hairpinMode": true } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;

    fn ours() -> Map<String, Value> {
        json!({ "type": PLUGIN, "mode": "observe" }).as_object().unwrap().clone()
    }

    #[test]
    fn ours_comes_last_and_the_rest_keeps_its_order_and_spelling() {
        let chain = Conflist::guardable(FLANNEL.as_bytes(), false).unwrap();
        assert!(!chain.has_ours() && !chain.ends_with(&ours()));
        insta::assert_snapshot!(chain.with(&ours()), @r#"
        {
          "name": "cbr0",
          "cniVersion": "0.4.0",
          "plugins": [
            { "type": "flannel", "delegate": { "mtu": 1e3, "hairpinMode": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            {"mode":"observe","type":"bulkhead-cni"}
          ]
        }
        "#);
    }

    #[test]
    fn twice_is_once_and_back_is_where_it_was() {
        let text = FLANNEL.replace("0.3.1", "1.0.0");
        let chain = Conflist::guardable(text.as_bytes(), false).unwrap();
        let with = Conflist::guardable(chain.with(&ours()).as_bytes(), false).unwrap();
        assert!(with.ends_with(&ours()));
        assert_eq!(with.with(&ours()), chain.with(&ours()));
        assert_eq!(with.without(), chain.without());
        let changed: Map<_, _> = json!({ "type": PLUGIN }).as_object().unwrap().clone();
        assert!(!with.ends_with(&changed));
        assert!(Conflist::guardable(with.with(&changed).as_bytes(), false).unwrap().ends_with(&changed));
        // Before others it sees no address that they still give.
        let first = chain.without().replacen("[\n", "[\n{ \"type\": \"bulkhead-cni\", \"mode\": \"observe\" },\n", 1);
        let first = Conflist::guardable(first.as_bytes(), false).unwrap();
        assert!(first.has_ours() && !first.ends_with(&ours()));
        assert_eq!(first.with(&ours()), chain.with(&ours()));
    }

    #[test]
    fn one_plugin_becomes_a_list() {
        let text = r#"{"cniVersion":"1.0.0","name":"one","type":"bridge","bridge":"cni0"}"#;
        let chain = Conflist::guardable(text.as_bytes(), true).unwrap();
        let list: Value = serde_json::from_str(&chain.with(&ours())).unwrap();
        assert_eq!(list["plugins"][0]["bridge"], "cni0");
        assert_eq!(list["plugins"][1], Value::Object(ours()));
        assert!(Conflist::guardable(list.to_string().as_bytes(), false).unwrap().ends_with(&ours()));
    }

    #[test]
    fn what_cannot_be_guarded_is_said() {
        let refused = |text: &str| Conflist::guardable(text.as_bytes(), false).unwrap_err().to_string();
        for (text, why) in [
            ("{", "is no network configuration: EOF"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "is no network configuration: it has no `name`"),
            (r#"{"name":"x","plugins":[]}"#, "is no network configuration: it has no `cniVersion`"),
            (r#"{"name":"x","cniVersion":"1.0.0"}"#, "is no network configuration: it has no `plugins`"),
            (r#"{"name":"x","cniVersion":"1.0.0","plugins":[]}"#, "is no network configuration: it has no `plugins`"),
            (
                r#"{"name":"x","cniVersion":"1.0.0","plugins":[{}]}"#,
                "is no network configuration: missing field `type`",
            ),
            (r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bulkhead-cni"}]}"#, "it has no `plugins`"),
            (r#"{"name":"x","cniVersion":"0.2.0","plugins":[{"type":"bridge"}]}"#, "speaks version 0.2.0 of CNI"),
            (r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"macvlan"}]}"#, "is made by the plugin `macvlan`"),
        ] {
            assert!(refused(text).contains(why), "{text}: {}", refused(text));
        }
    }
}
