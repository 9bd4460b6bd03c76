//! Kept logs over the API and on the dashboard: who may search whose, and what is asked for wrongly.

use std::sync::Arc;

use hyperfactory_hub::access::Role;
use hyperfactory_hub::logs::Ingest;
use hyperfactory_hub::metrics::Metrics;
use prost::Message as _;
use protocol::NodeId;
use protocol::message::{Batch, LogBatch, LogLine, LogSource, Lost, LostReason, SpoolRange, Upload, upload};
use serde_json::Value;
use store::on_both_engines;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dashboard::Browser;
use crate::{Answer, Site, now, tenant};

/// Has a node ship these lines of `shop/web`, one after the other.
async fn ship(site: &Site, of: &str, node: NodeId, lines: &[&str]) {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let started = Ingest::start(site.database.clone(), metrics, CancellationToken::new()).await;
    let (ingest, task) = started.expect("an intake");
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    let spool = SpoolRange { epoch: 1, first: 1, last: 4 };
    let mut intake = ingest.open(node, &tenant(of), &spool).await.expect("a session");
    let source = LogSource { stack: "shop".into(), service: "web".into(), number: 1 };
    let line =
        |(text, at): (&&str, i64)| LogLine { at_ns: at * 1_000_000_000, text: (*text).into(), ..LogLine::default() };
    let batch = LogBatch { sources: vec![source], lines: lines.iter().zip(1_795_435_200..).map(line).collect() };
    let body = zstd::bulk::compress(&batch.encode_to_vec(), 1).expect("packed");
    // What came before it is lost.
    let lost = Lost { epoch: 1, first: 1, last: 3, reason: LostReason::Overflow.into() };
    intake.receive(Upload { message: Some(upload::Message::Lost(lost)) }, now()).expect("taken in");
    let batch = Batch { epoch: 1, sequence: 4, body };
    intake.receive(Upload { message: Some(upload::Message::Batch(batch)) }, now()).expect("taken in");
    intake.commit(now()).await.expect("stored");
}

fn texts(answer: &Answer) -> Vec<String> {
    let page = answer.json();
    let items = page["items"].as_array().unwrap_or_else(|| panic!("no page: {}", answer.body));
    items.iter().map(|item| item["text"].as_str().expect("a text").to_owned()).collect()
}

on_both_engines! {
    async fn kept_lines_are_for_operators_of_their_own_tenant_and_each_search_is_on_record(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        site.tenant("other").await;
        let (node, others) = (site.node("acme", "press").await, site.node("other", "mill").await);
        ship(&site, "acme", node, &["pressure 7 bar", "pressure lost", "it's \"quoted\""]).await;
        ship(&site, "other", others, &["pressure of another"]).await;
        let operator = site.token(Role::Operator, Some("acme")).await;
        let get = async |query: &str| site.get(&format!("/api/v1/logs?{query}"), &operator).await;
        assert_eq!(site.get("/api/v1/logs", &site.token(Role::Viewer, Some("acme")).await).await.status, 403);
        assert_eq!(texts(&get("text=pressure").await), ["pressure lost", "pressure 7 bar"]);
        assert_eq!(texts(&get("text=%22quoted%22&node=").await), ["it's \"quoted\""]);
        assert_eq!(texts(&get(&format!("node={others}")).await), [""; 0]);
        assert_eq!(get("tenant=other").await.status, 404);
        let all = site.get("/api/v1/logs?text=pressure", &site.token(Role::Admin, None).await).await;
        assert_eq!(texts(&all).len(), 3);
        let line = get("grep=7.bar").await.json()["items"][0].clone();
        assert_eq!(line["at"], "2026-11-23T12:00:00.000000000Z");
        let said = ["tenant", "node", "stack", "service", "stream", "text"].map(|field| line[field].as_str().expect("text").to_owned());
        assert_eq!(said, ["acme", &node.to_string(), "shop", "web", "stdout", "pressure 7 bar"]);

        let coverage = async |node: NodeId| site.get(&format!("/api/v1/nodes/{node}/logs/coverage"), &operator).await;
        let epoch = coverage(node).await.json()[0].clone();
        assert_eq!((&epoch["stored"], &epoch["lost"], &epoch["lost_ranges"][0]["reason"]), (&1.into(), &3.into(), &"overflow".into()));
        assert_eq!(coverage(others).await.status, 404);

        let first = get("limit=2").await;
        let cursor = first.json()["next_cursor"].as_str().expect("a cursor").to_owned();
        let second = get(&format!("limit=2&cursor={cursor}")).await;
        assert_eq!((texts(&first).len(), texts(&second)), (2, vec!["pressure 7 bar".to_owned()]));
        assert_eq!(second.json().get("next_cursor"), None);
        for wrong in ["grep=((", "stream=both", "node=press", "since=yesterday", "stack=%00", "text=1+2+3+4+5+6+7+8+9", "reason=two%0Alines"] {
            let answer = get(wrong).await;
            assert!(answer.status == 422, "{wrong}: {} {}", answer.status, answer.body);
        }
        assert_eq!(get("cursor=nonsense").await.status, 400);

        get("text=lost&stream=stdout&reason=line+2+stands+still").await;
        let audit = site.get("/api/v1/audit?action=logs.searched", &operator).await.json();
        let searched: Vec<&Value> = audit["items"].as_array().expect("a list").iter().collect();
        // Once for each search that made sense, and not for a page after the first.
        assert!(searched.iter().any(|entry| entry["detail"]["text"] == "pressure"), "{searched:?}");
        let pages = searched.iter().filter(|entry| entry["detail"]["text"] == "" && entry["detail"]["grep"].is_null());
        assert_eq!(pages.count(), 2, "{searched:?}");
        let said = ["text", "stream", "reason"].map(|field| searched[0]["detail"][field].as_str().expect("text").to_owned());
        assert_eq!(said, ["lost", "stdout", "line 2 stands still"]);
        assert!(searched[1]["detail"]["reason"].is_null(), "{searched:?}");
    }

    async fn the_dashboard_finds_kept_lines_and_escapes_them(test: TestDatabase) {
        let site = Site::open(test).await;
        site.tenant("acme").await;
        let node = site.node("acme", "press").await;
        ship(&site, "acme", node, &["<b>pressure</b> lost", "all is well"]).await;
        let address = format!("/nodes/{node}/logs/kept?stack=shop&service=web");
        let viewer = Browser::sign_in(&site, Role::Viewer, Some("acme")).await;
        assert_eq!(viewer.get(&address).await.status, 403);
        let operator = Browser::sign_in(&site, Role::Operator, Some("acme")).await;
        let page = operator.get(&format!("{address}&text=pressure&grep=&since=")).await.body;
        assert!(page.contains("&lt;b&gt;pressure&lt;/b&gt; lost") && !page.contains("all is well"), "{page}");
        assert!(page.contains("value=\"pressure\""), "what was asked for stays there: {page}");
        let why = operator.get(&format!("{address}&text=pressure&reason=a+leak")).await.body;
        assert!(why.contains("name=\"reason\" value=\"a leak\""), "{why}");
        let audit = operator.get("/audit?action=logs.searched").await.body;
        assert!(audit.contains("reason: a leak"), "{audit}");
        let none = operator.get(&format!("{address}&text=%22%3E%3Cscript%3E")).await.body;
        assert!(none.contains("Nothing found") && !none.contains("<script>"), "{none}");
        assert!(page.contains("3 batches of this node's lines"), "{page}");
        // What can't be searched for is put right where it was asked for.
        for (wrong, says) in [("grep=((&text=pressure", "unclosed"), ("until=yesterday&text=pressure", "how long ago")] {
            let refused = operator.get(&format!("{address}&{wrong}")).await;
            assert_eq!(refused.status, 422, "{}", refused.body);
            assert!(refused.body.contains(says) && refused.body.contains("value=\"pressure\""), "{}", refused.body);
        }
        // 2026-11-23T12:00:00 is when the first line was written, the second one a second later.
        let first = operator.get(&format!("{address}&since=2026-11-23T12:00&until=2026-11-23T12:00:00")).await.body;
        assert!(first.contains("&lt;b&gt;pressure&lt;/b&gt; lost") && !first.contains("all is well"), "{first}");
        // From the live log's page, and by its key.
        let live = operator.get(&format!("/nodes/{node}/logs?stack=shop&service=web")).await.body;
        assert!(live.contains(&format!("action=\"/nodes/{node}/logs/kept\"")), "{live}");
        let older = operator.get(&format!("{address}&limit=1")).await.body;
        assert!(older.contains("all is well") && older.contains(">Older</a>"), "{older}");
    }
}
