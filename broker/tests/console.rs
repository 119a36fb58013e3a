//! The console's pages and JSON, as a browser asks for them.

mod support;

use hutong_broker::Broker;
use hutong_proto::{
    Cursor, Offset, Value, api,
    api::subscribe_open::Start,
    delta::{Colour, TestOutcome},
    metadata,
};
use serde_json::{Value as Json, json};
use std::time::Duration;
use support::{
    ANHUI, Consumer, PATIENCE, Producer, SICHUAN, batch, config, delta, entity, open, start,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

const RED: Value = Value::HealthCode(Colour::Red);
const COOKIE: &str = "cookie: hutong-identity=auditor/console\r\n";

async fn ask(broker: &Broker, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(broker.http_addr())
        .await
        .expect("connect");
    let host = match headers.contains("host:") {
        true => "",
        false => "host: 127.0.0.1\r\n",
    };
    let request = format!("GET {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("send");
    stream
}

/// Status, headers, body.
async fn get(broker: &Broker, path: &str, headers: &str) -> (u16, String, String) {
    let mut stream = ask(broker, path, headers).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).expect("a status");
    (
        status.parse().expect("a number"),
        head.to_owned(),
        body.to_owned(),
    )
}

async fn json(broker: &Broker, path: &str) -> Json {
    let (status, _, body) = get(broker, &format!("/console/api/{path}"), COOKIE).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Whether an error speaks English and Chinese.
fn is_bilingual(body: &str) -> bool {
    let error: Json = serde_json::from_str(body).expect("JSON");
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    let chinese = |c: char| ('\u{4e00}'..='\u{9fff}').contains(&c);
    !text("message").is_empty() && text("message_zh").contains(chinese)
}

#[tokio::test]
async fn the_page_is_served_with_a_strict_policy_and_is_not_sent_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (status, head, body) = get(&broker, "/console/", "").await;
    assert_eq!(status, 200);
    assert!(body.contains("<title>Hutong"));
    assert!(
        head.contains("content-security-policy: default-src 'none'; script-src 'self'"),
        "{head}"
    );
    assert!(!head.contains("unsafe-inline"), "{head}");
    let tag = head
        .lines()
        .find_map(|l| l.strip_prefix("etag: "))
        .expect("a tag");
    let (status, _, body) = get(
        &broker,
        "/console/main.js",
        &format!("if-none-match: {tag}\r\n"),
    )
    .await;
    assert_eq!((status, body.as_str()), (304, ""));
    assert_eq!(get(&broker, "/console", "").await.0, 308);
    assert_eq!(get(&broker, "/console/nothing.js", "").await.0, 404);
    broker.shutdown().await;
}

#[tokio::test]
async fn the_api_stands_behind_the_access_of_grpc() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    for (path, headers, expected, reason) in [
        ("picture", "", 401, "IDENTITY_MISSING"),
        ("live", "", 401, "IDENTITY_MISSING"),
        ("config", "", 401, "IDENTITY_MISSING"),
        (
            "config",
            "hutong-identity: platform/340000\r\n",
            403,
            "ROLE_NOT_ALLOWED",
        ),
        (
            "errors",
            "cookie: hutong-identity=root/x\r\n",
            401,
            "IDENTITY_UNKNOWN",
        ),
        ("picture", "hutong-identity: operator/a\r\n", 200, ""),
        ("picture", "hutong-identity: platform/340000\r\n", 200, ""),
        (
            "record/340000/urgent/0/1",
            "hutong-identity: platform/340000\r\n",
            403,
            "ROLE_NOT_ALLOWED",
        ),
        ("record/340000/urgent/0/1", COOKIE, 404, "DELTA_NOT_FOUND"),
        (
            "record/340000/control/0/1",
            COOKIE,
            404,
            "PARTITION_UNKNOWN",
        ),
        ("platform/999999", COOKIE, 404, "PARTITION_UNKNOWN"),
        ("platform/%FF", COOKIE, 400, "VALUE_OUT_OF_RANGE"),
        ("nothing", COOKIE, 404, ""),
        (
            "record/340000/urgent/0/x",
            COOKIE,
            400,
            "VALUE_OUT_OF_RANGE",
        ),
        ("entity/xyz", COOKIE, 400, "ENTITY_INVALID"),
        (
            "trace/00000000000000000000000000000001/340000/nothing/0",
            COOKIE,
            400,
            "ENUM_UNKNOWN",
        ),
        (
            "area/%E5%AE%89%E5%BE%BD%E7%9C%81/",
            COOKIE,
            400,
            "ENTITY_INVALID",
        ),
        ("drills/..%2Fbroker.toml", COOKIE, 404, ""),
    ] {
        let (status, _, body) = get(&broker, &format!("/console/api/{path}"), headers).await;
        assert_eq!(status, expected, "{path} {headers}: {body}");
        assert!(body.contains(reason), "{path}: {body}");
        assert!(status == 200 || is_bilingual(&body), "{path}: {body}");
    }
    // Somebody else's name that leads here.
    let headers = format!("host: hutong.example\r\n{COOKIE}");
    let (status, _, body) = get(&broker, "/console/api/picture", &headers).await;
    assert!(status == 421 && is_bilingual(&body), "{status} {body}");
    let headers = format!("host: LocalHost:7401\r\n{COOKIE}");
    assert_eq!(get(&broker, "/console/api/picture", &headers).await.0, 200);
    broker.shutdown().await;
}

#[tokio::test]
async fn who_has_not_applied_what_is_the_first_finding_and_leads_to_the_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let now = || Start::Now(api::StartNow {});
    let mut sichuan = Consumer::open(&broker, SICHUAN, open("main", now())).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let red = batch(ANHUI, 1, &[delta(1, 1, RED)]);
    producer.publish(red).await.expect("acknowledged");
    let (offset, ..) = sichuan.deltas(1).await[0];

    let picture = json(&broker, "picture").await;
    let s = &picture["subscriptions"][0];
    assert_eq!(
        (s["platform"].as_u64(), s["state"].as_str()),
        (Some(510_000), Some("live"))
    );
    assert_eq!(s["lag"][0]["records"], 1, "{s}");
    assert_eq!(s["lag"][0]["oldest_offset"], offset.0);
    assert_eq!(s["lag"][0]["oldest_issuer"], ANHUI);
    // Rows and columns by code: Shanghai, Anhui, Sichuan.
    let grid = &picture["matrix"]["grid"][0];
    assert_eq!(
        (grid[0].as_str(), grid[2].as_str()),
        (Some("---"), Some(".!-")),
        "{picture}"
    );

    // It says nothing for as long as a warning takes.
    let judged = async {
        loop {
            let picture = json(&broker, "picture").await;
            let first = picture["findings"][0].clone();
            if first["severity"] == "warning" {
                return first;
            }
            tokio::task::yield_now().await;
        }
    };
    let first = timeout(PATIENCE, judged).await.expect("it is found");
    assert_eq!(first["platform"], SICHUAN);
    assert_eq!(first["why"], "not_applying", "{first}");
    assert_eq!(first["offset"], offset.0);

    let record = json(&broker, &format!("record/340000/urgent/0/{offset}")).await;
    assert_eq!(record["deltas"][0]["entity"], entity(1).to_string());
    assert_eq!(record["deltas"][0]["value"]["word"], "red");
    let trace = json(
        &broker,
        &format!("trace/{}/340000/health_code/1", entity(1)),
    )
    .await;
    assert_eq!(trace["hops"][0]["state"], "TRACE_STATE_SENT", "{trace}");
    let points = ["committed", "arrived", "durable", "applied"];
    let points = points.map(|point| trace[format!("{point}_at_us")].as_u64());
    assert!(points.is_sorted() && points[0] > Some(0), "{trace}");
    let found = json(&broker, &format!("entity/{}", entity(1))).await;
    assert_eq!(found["explain"]["colour"], "red");
    let pairs = json(&broker, "platform/510000").await;
    assert!(
        pairs["pairs"].as_array().is_some_and(|all| all
            .iter()
            .any(|p| p["issuer"] == ANHUI && p["lag"][0]["records"] == 1)),
        "{pairs}"
    );

    let offset = bulk_is_judged_by_itself(&broker, &mut producer, &mut sichuan).await;

    // Healed.
    let log_id = picture["log_id"].as_str().expect("a text");
    let log_id = hutong_proto::LogId(u64::from_str_radix(log_id, 16).expect("hexadecimal"));
    sichuan.applied(Cursor::both(log_id, offset.next())).await;
    let healed = async {
        while json(&broker, "picture").await["subscriptions"][0]["severity"] != "good" {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, healed).await.expect("all clear");
    broker.shutdown().await;
}

/// While urgent is worth a warning. Says where a record of bulk is, which has half a minute until then.
async fn bulk_is_judged_by_itself(
    broker: &Broker,
    producer: &mut Producer,
    sichuan: &mut Consumer,
) -> Offset {
    let negative = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: support::now(),
    };
    let bulk = batch(ANHUI, 2, &[delta(2, 1, negative)]);
    producer.publish(bulk).await.expect("acknowledged");
    let (offset, ..) = sichuan.deltas(1).await[0];
    // The page is of the last look, which may be before that.
    let seen = async {
        loop {
            let page = json(broker, "platform/510000").await;
            let pairs = page["pairs"].as_array().expect("a list");
            let pair = pairs.iter().find(|p| p["issuer"] == ANHUI);
            if let Some(pair) = pair.filter(|p| p["lag"][1]["records"] == 1) {
                return pair.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let pair = timeout(PATIENCE, seen).await.expect("bulk is outstanding");
    assert_ne!(pair["severity"][0], "good", "{pair}");
    let late = pair["lag"][1]["seconds"].as_f64() >= Some(30.0);
    assert_eq!(pair["severity"][1] == "good", !late, "{pair}");
    offset
}

#[tokio::test]
async fn streams_are_bounded_show_what_is_new_and_end_with_the_broker() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = BufReader::new(ask(&broker, "/console/api/live", COOKIE).await);
        let mut line = String::new();
        timeout(PATIENCE, stream.read_line(&mut line))
            .await
            .expect("in time")
            .expect("a line");
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        open.push(stream);
    }
    let (status, _, body) = get(&broker, "/console/api/live", COOKIE).await;
    assert_eq!(status, 503, "{body}");
    // Two pictures, of which the second is newer.
    let mut times = Vec::new();
    while times.len() < 2 {
        let mut line = String::new();
        let read = open[3].read_line(&mut line);
        timeout(Duration::from_secs(20), read)
            .await
            .expect("in time")
            .expect("a line");
        if let Some(data) = line.strip_prefix("data: ") {
            let picture: Json = serde_json::from_str(data).expect("JSON");
            times.push(picture["now_us"].as_u64().expect("a time"));
        }
    }
    assert!(times[0] < times[1]);
    // A place that is given back is there for the next one.
    open.pop();
    let again = async {
        loop {
            let mut stream = BufReader::new(ask(&broker, "/console/api/live", COOKIE).await);
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("a line");
            if line.contains("200") {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("a place");
    timeout(PATIENCE, broker.shutdown())
        .await
        .expect("streams hold up nothing");
    let mut rest = Vec::new();
    let ended = open[0].read_to_end(&mut rest);
    timeout(PATIENCE, ended)
        .await
        .expect("it ends")
        .expect("in order");
}

#[tokio::test]
async fn reports_of_drills_come_from_the_configured_folder_into_a_sandbox() {
    let dir = tempfile::tempdir().expect("a folder");
    let reports = dir.path().join("reports");
    std::fs::create_dir(&reports).expect("a folder");
    std::fs::write(reports.join("kill-broker.html"), "<p>PASS").expect("written");
    let mut config = config(&dir.path().join("data"));
    config.drills = Some(reports);
    let broker = Broker::start(config).await.expect("it starts");
    let list = json(&broker, "drills").await;
    assert_eq!(list["reports"][0]["name"], "kill-broker.html");
    let (status, head, body) = get(&broker, "/console/api/drills/kill-broker.html", COOKIE).await;
    assert_eq!((status, body.as_str()), (200, "<p>PASS"));
    assert!(
        head.contains("content-security-policy: sandbox; default-src 'none'"),
        "{head}"
    );
    broker.shutdown().await;
}

#[tokio::test]
async fn what_a_connector_says_is_on_the_page_of_its_platform_and_one_that_failed_needs_attention()
{
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut reports =
        api::report_service_client::ReportServiceClient::new(support::channel(&broker).await);
    let mut report = api::ConnectorReport {
        connector: "registry".to_owned(),
        role: api::ConnectorRole::Source.into(),
        state: api::ConnectorState::Running.into(),
        since_us: 1_650_000_000_000_000,
        dead_letters: 312,
        dead_letters_bytes: 70_000,
        dead_letters_added: vec![api::DeadLettersAdded {
            reason: "VALUE_UNMAPPED".to_owned(),
            rows: 12,
        }],
    };
    let as_who = |identity: &str, report: &api::ConnectorReport| {
        let report = Some(report.clone());
        let mut request = tonic::Request::new(api::ReportRequest { report });
        let identity = identity.parse().expect("ascii");
        request.metadata_mut().insert(metadata::IDENTITY, identity);
        request
    };
    let refused = reports.report(as_who("operator/o", &report)).await;
    assert_eq!(
        refused.expect_err("no platform").code(),
        tonic::Code::PermissionDenied
    );
    let said = reports.report(as_who("platform/340000", &report)).await;
    said.expect("taken");

    let own = json(&broker, "platform/340000").await["connectors"].clone();
    assert_eq!(own[0]["connector"], "registry");
    assert_eq!(own[0]["dead_letters"], 312);
    assert_eq!(
        own[0]["dead_letters_added"],
        json!([{ "reason": "VALUE_UNMAPPED", "rows": 12 }])
    );
    assert_eq!((&own[0]["silent"], &own[1]), (&json!(false), &json!(null)));
    assert_eq!(
        json(&broker, "platform/510000").await["connectors"],
        json!([])
    );
    assert_eq!(json(&broker, "connectors").await, own);
    let picture = json(&broker, "picture").await;
    let platforms = picture["platforms"].as_array().expect("a list").iter();
    let letters = platforms.map(|p| (p["code"].as_u64(), p["dead_letters"].as_u64()));
    for (code, letters) in letters {
        // Of the others nobody knows.
        let wanted = (code == Some(340_000)).then_some(312);
        assert_eq!(letters, wanted, "{code:?}");
    }
    let failed = |picture: &serde_json::Value| {
        let findings = picture["findings"].as_array().expect("a list").clone();
        findings
            .into_iter()
            .find(|f| f["why"] == "connector_failed")
    };
    assert_eq!(failed(&picture), None);

    report.state = api::ConnectorState::Failed.into();
    let said = reports.report(as_who("platform/340000", &report)).await;
    said.expect("taken");
    // Pictures are made once a moment for all who ask.
    let found = timeout(PATIENCE, async {
        loop {
            if let Some(found) = failed(&json(&broker, "picture").await) {
                return found;
            }
        }
    });
    let found = found.await.expect("found");
    assert_eq!(
        (&found["platform"], &found["subscription"]),
        (&json!(340_000), &json!("registry"))
    );
    assert_eq!(
        (&found["severity"], &found["since_us"]),
        (&json!("warning"), &json!(report.since_us))
    );
    let platforms = json(&broker, "picture").await["platforms"].clone();
    let mut platforms = platforms.as_array().expect("a list").iter();
    let anhui = platforms.find(|p| p["code"] == 340_000).expect("Anhui");
    assert_eq!(anhui["severity"], "warning", "its row says so, too");
    broker.shutdown().await;
}

#[tokio::test]
async fn what_went_wrong_last_with_a_platform_is_on_its_page_and_on_no_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    assert_eq!(json(&broker, "platform/340000").await["last"], json!([]));
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let mut wrong = batch(ANHUI, 1, &[delta(1, 1, RED), delta(2, 1, RED)]);
    wrong.deltas[1].entity = vec![1; 15].into();
    let ack = producer.publish(wrong).await.expect("acknowledged");
    assert_eq!((ack.accepted, ack.refused.len()), (1, 1));

    let last = json(&broker, "platform/340000").await["last"].clone();
    assert_eq!(last.as_array().map(Vec::len), Some(1), "{last}");
    let refused = &last[0];
    assert_eq!(refused["side"], "publish");
    assert_eq!(refused["ended"], false);
    assert_eq!(refused["reason"], "ENTITY_INVALID");
    assert_eq!(refused["field"], "deltas[1].entity");
    assert!(refused["at_us"].as_u64() > Some(0), "{refused}");
    assert!(refused["text"].as_str() != refused["text_zh"].as_str());

    // A batch of somebody else is refused as a whole; one that is not the next ends the stream. Each is the last one.
    let one = [delta(3, 1, RED)];
    let ack = producer
        .publish(batch(SICHUAN, 2, &one))
        .await
        .expect("acknowledged");
    assert!(ack.error.is_some(), "{ack:?}");
    let last = json(&broker, "platform/340000").await["last"].clone();
    let seen = (&last[0]["reason"], &last[0]["field"], &last[0]["ended"]);
    assert_eq!(
        seen,
        (&json!("ISSUER_NOT_YOURS"), &json!("issuer"), &json!(false))
    );
    producer
        .publish(batch(ANHUI, 9, &one))
        .await
        .expect_err("a gap");
    let last = json(&broker, "platform/340000").await["last"].clone();
    assert_eq!(last.as_array().map(Vec::len), Some(1), "{last}");
    let ended = &last[0];
    assert_eq!(
        (&ended["side"], &ended["ended"]),
        (&json!("publish"), &json!(true))
    );
    assert_eq!(ended["reason"], "SEQUENCE_OUT_OF_ORDER");

    let log_id = hutong_proto::LogId(1);
    let start = Start::Cursor(Cursor::both(log_id, hutong_proto::Offset(9)).to_api());
    let mut consumer = Consumer::open(&broker, ANHUI, open("main", start)).await;
    consumer.next().await.expect_err("another log");
    let last = json(&broker, "platform/340000").await["last"].clone();
    assert_eq!(last[0]["side"], "subscribe", "the newest is first: {last}");
    assert_eq!(last[0]["ended"], true);
    assert_eq!(last[0]["field"], "open.cursor.log_id");
    assert_eq!(last[1], *ended, "each direction has its own");
    assert_eq!(json(&broker, "platform/510000").await["last"], json!([]));
    broker.shutdown().await;
}
