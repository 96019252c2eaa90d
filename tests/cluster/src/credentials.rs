//! Keys and certificates of a cluster, and the files that clients find the API server with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::plan::{self, Plan};

/// `$1` is the directory; the rest are `NAME`, `SUBJECT` and `ALTERNATIVE NAMES` in turn. Keys are of a curve, which takes no time.
const MAKE: &str = r#"
set -eu
cd "$1"
shift
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }
key ca
openssl req -x509 -new -key ca.key -subj /CN=bulkhead-test -days 2 -out ca.crt
key tokens
openssl pkey -in tokens.key -pubout -out tokens.pub
while [ $# -gt 0 ]; do
  key "$1"
  printf 'subjectAltName=%s\nextendedKeyUsage=clientAuth,serverAuth\n' "$3" >"$1.extensions"
  openssl req -new -key "$1.key" -subj "$2" |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile "$1.extensions" -out "$1.crt"
  shift 3
done
"#;

/// The directory of all of them.
#[derive(Debug)]
pub(crate) struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    pub(crate) fn make(directory: PathBuf, plan: Plan) -> Result<Self> {
        fs::create_dir(&directory)?;
        let credentials = Self { directory };
        let api = format!(
            "IP:{},IP:{},IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost",
            plan::control(),
            plan::API_SERVICE
        );
        let mut wanted = vec![("apiserver".to_owned(), "/CN=kube-apiserver".to_owned(), api)];
        // Kubernetes knows users and groups by these names.
        for (name, subject) in [
            ("admin", "/O=system:masters/CN=admin"),
            ("kube-controller-manager", "/CN=system:kube-controller-manager"),
            ("kube-scheduler", "/CN=system:kube-scheduler"),
            ("kube-proxy", "/CN=system:kube-proxy"),
        ] {
            wanted.push((name.to_owned(), subject.to_owned(), format!("DNS:{name}")));
        }
        for node in 1..=plan.nodes {
            let [v4, v6] = plan::underlay(node);
            let names = format!("DNS:n{node},IP:{v4},IP:{v6}");
            wanted.push((format!("n{node}"), format!("/O=system:nodes/CN=system:node:n{node}"), names));
        }
        let mut openssl = Command::new("sh");
        openssl.args(["-c", MAKE, "credentials"]).arg(&credentials.directory);
        for (name, subject, names) in &wanted {
            openssl.args([name, subject, names]);
        }
        let output = openssl.output().context("make certificates")?;
        ensure!(output.status.success(), "make certificates: {}", String::from_utf8_lossy(&output.stderr));
        for (name, ..) in &wanted {
            fs::write(credentials.kubeconfig(name), credentials.settings(name))?;
        }
        Ok(credentials)
    }

    /// A key, certificate or other file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What a client of that name reads.
    pub(crate) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.kubeconfig"))
    }

    fn settings(&self, name: &str) -> String {
        let file = |ending: &str| self.file(&format!("{name}.{ending}")).display().to_string();
        let cluster = serde_json::json!({
            "server": format!("https://{}:6443", plan::control()),
            "certificate-authority": self.ca(),
        });
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": name, "user": { "client-certificate": file("crt"), "client-key": file("key") } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
            "current-context": "test",
        })
        .to_string()
    }

    /// Certificate of the authority that all trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// `--OPTION=FILE`.
    pub(crate) fn option(&self, option: &str, file: &str) -> String {
        flag(option, &self.file(file))
    }
}

/// `--OPTION=PATH`.
pub(crate) fn flag(option: &str, path: &Path) -> String {
    format!("--{option}={}", path.display())
}
