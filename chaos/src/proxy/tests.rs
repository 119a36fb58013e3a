//! The proxy against a plain echo server.

use super::*;
use std::{net::Ipv4Addr, time::Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const IP: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

async fn echo() -> (watch::Sender<SocketAddr>, JoinSet<()>) {
    let listener = TcpListener::bind((IP, 0)).await.expect("a port");
    let address = watch::Sender::new(listener.local_addr().expect("an address"));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut input, mut output) = stream.split();
                // It ends when the client does, which is no error here.
                drop(tokio::io::copy(&mut input, &mut output).await);
            });
        }
    });
    (address, tasks)
}

async fn line(broker: &watch::Sender<SocketAddr>) -> Line {
    let line = Line::open(IP, Clients::All, broker.subscribe()).await;
    line.expect("it listens")
}

async fn dial(line: &Line) -> TcpStream {
    TcpStream::connect(line.address).await.expect("it accepts")
}

async fn there_and_back(stream: &mut TcpStream, text: &str) -> Duration {
    let begun = Instant::now();
    stream.write_all(text.as_bytes()).await.expect("written");
    let mut back = vec![0; text.len()];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut back));
    read.await.expect("in time").expect("read");
    assert_eq!(back, text.as_bytes());
    begun.elapsed()
}

#[tokio::test]
async fn bytes_go_through_and_later_when_there_is_latency() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    let mut stream = dial(&line).await;
    there_and_back(&mut stream, "hello").await;
    let rule = Rule {
        delay: Duration::from_millis(60),
        ..Rule::default()
    };
    let ruling = line.add(rule, rule);
    assert!(there_and_back(&mut stream, "hello").await >= Duration::from_millis(120));
    assert_eq!(line.counts().delayed_chunks, 2);
    line.take_away(ruling);
    there_and_back(&mut stream, "hello").await;
    assert_eq!(line.counts().delayed_chunks, 2);
}

#[tokio::test]
async fn rules_of_two_faults_hold_together_and_end_one_by_one() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    let late = Rule {
        delay: Duration::from_millis(30),
        loss: 0.5,
        bytes_per_s: Some(1000),
        ..Rule::default()
    };
    let cut = Rule {
        held: true,
        delay: Duration::from_millis(40),
        loss: 0.5,
        bytes_per_s: Some(500),
        ..Rule::default()
    };
    let now = || {
        (
            *line.shared.to_broker.borrow(),
            *line.shared.from_broker.borrow(),
        )
    };
    let first = line.add(late, Rule::default());
    let second = line.add(cut, cut);
    let both = Rule {
        held: true,
        delay: Duration::from_millis(70),
        loss: 0.75,
        bytes_per_s: Some(500),
        ..Rule::default()
    };
    assert_eq!(now(), (both, cut));
    line.take_away(first);
    assert_eq!(now(), (cut, cut));
    line.take_away(first);
    line.take_away(second);
    assert_eq!(now(), (Rule::default(), Rule::default()));
}

#[tokio::test]
async fn a_line_that_two_closed_is_open_when_both_have_opened_it() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    line.close();
    line.close();
    line.open_again();
    let mut rest = Vec::new();
    let mut refused = dial(&line).await;
    let end = tokio::time::timeout(PATIENCE, refused.read_to_end(&mut rest));
    drop(end.await.expect("in time"));
    assert_eq!(line.counts().refused, 1);
    line.open_again();
    there_and_back(&mut dial(&line).await, "hello").await;
}

#[tokio::test]
async fn a_line_that_is_wide_enough_holds_nothing_up() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    let mut stream = dial(&line).await;
    let wide = Rule {
        bytes_per_s: Some(100_000_000),
        ..Rule::default()
    };
    let _ruling = line.add(wide, wide);
    for _ in 0..5 {
        there_and_back(&mut stream, "hello").await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(line.counts().throttled_us, 0);
}

#[tokio::test]
async fn a_held_line_gives_nothing_back_until_it_is_free_and_then_everything() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    let mut stream = dial(&line).await;
    let held = Rule {
        held: true,
        ..Rule::default()
    };
    let ruling = line.add(Rule::default(), held);
    stream.write_all(b"abc").await.expect("written");
    let begun = Instant::now();
    while line.counts().held_bytes < 3 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", line.counts());
        tokio::task::yield_now().await;
    }
    line.take_away(ruling);
    let mut back = [0; 3];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut back));
    read.await.expect("in time").expect("read");
    assert_eq!(&back, b"abc");
}

#[tokio::test]
async fn a_cut_ends_connections_and_a_closed_line_takes_none() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    let mut stream = dial(&line).await;
    there_and_back(&mut stream, "hello").await;
    assert_eq!(line.upstream().len(), 1);
    line.close();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest));
    // Reset or closed: it is over.
    drop(end.await.expect("in time"));
    assert_eq!(rest, b"");
    let mut refused = dial(&line).await;
    let end = tokio::time::timeout(PATIENCE, refused.read_to_end(&mut rest));
    drop(end.await.expect("in time"));
    assert_eq!(line.counts().refused, 1);
    assert!(line.upstream().is_empty());
    line.open_again();
    there_and_back(&mut dial(&line).await, "hello").await;
}

#[tokio::test]
async fn bandwidth_and_loss_take_their_time_and_are_counted() {
    let (broker, _tasks) = echo().await;
    let line = line(&broker).await;
    let mut stream = dial(&line).await;
    let slow = Rule {
        bytes_per_s: Some(100_000),
        ..Rule::default()
    };
    let ruling = line.add(slow, Rule::default());
    let took = there_and_back(&mut stream, &"x".repeat(20_000)).await;
    assert!(took >= Duration::from_millis(190), "{took:?}");
    // Pieces are of 16 KiB at most, so there is a second one, which waits for the first.
    assert!(line.counts().throttled_us >= 30_000);
    line.take_away(ruling);
    let lossy = Rule {
        loss: 1.0,
        ..Rule::default()
    };
    let _ruling = line.add(lossy, Rule::default());
    let took = there_and_back(&mut stream, "x").await;
    assert!(took >= Duration::from_millis(200), "{took:?}");
    assert_eq!((line.counts().stalls, line.counts().segments), (1, 1));
}
