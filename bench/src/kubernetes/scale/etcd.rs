//! Writes objects where the API server keeps them: that of a large cluster would take minutes to be told of each.

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::objects::Object;

/// Objects that are written at once; it takes 128.
const BATCH: usize = 100;
/// Such writes on the way.
const AT_ONCE: usize = 4;

/// Writes all of them, from the namespace of the control plane.
pub(super) async fn write(objects: impl Iterator<Item = Object>) -> Result<()> {
    let client = Client::try_from(Config::new("http://127.0.0.1:2379".parse()?))?;
    let mut objects = objects.peekable();
    let batches = std::iter::from_fn(|| {
        let batch: Vec<_> = objects.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then_some(batch)
    });
    let write = |batch: Vec<Object>| {
        let client = client.clone();
        async move {
            let coded = |(key, object): &Object| json!({ "requestPut": { "key": code(key), "value": code(&object.to_string()) } });
            let puts: Vec<Value> = batch.iter().map(coded).collect();
            let body = json!({ "success": puts }).to_string().into_bytes();
            let answer: Value = client.request(http::Request::post("/v3/kv/txn").body(body)?).await?;
            ensure!(answer["succeeded"] == json!(true), "etcd: {answer}");
            Ok(())
        }
    };
    stream::iter(batches).map(write).buffer_unordered(AT_ONCE).try_collect().await
}

fn code(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}
