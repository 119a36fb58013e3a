"""Publishes, subscribes and breaks the rules, with nothing but grpcio and the .proto files.

Usage: client.py ADDRESS PROTO_FOLDER STUB_FOLDER
"""

import queue
import subprocess
import sys
import time
from pathlib import Path

address, protos, stubs = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
files = sorted(str(p.relative_to(protos)) for p in protos.glob("hutong/sync/v1/*.proto"))
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--python_out={stubs}",
     f"--grpc_python_out={stubs}", *files],
    check=True,
)
sys.path.insert(0, stubs)

import grpc  # noqa: E402
import lz4.block  # noqa: E402
from google.rpc import error_details_pb2  # noqa: E402
from grpc_status import rpc_status  # noqa: E402
from hutong.sync.v1 import (  # noqa: E402
    admin_pb2, admin_pb2_grpc, delta_pb2, publish_pb2, publish_pb2_grpc,
    query_pb2, query_pb2_grpc, report_pb2, report_pb2_grpc, subscribe_pb2, subscribe_pb2_grpc,
)

channel = grpc.insecure_channel(address)
ANHUI, SICHUAN = 340000, 510000


def identity(name):
    return [("hutong-identity", name)]


def now_us():
    return time.time_ns() // 1000


class Stream:
    """A bidirectional stream: put requests in, take responses out."""

    def __init__(self, call, name):
        self.requests = queue.Queue()
        self.responses = call(iter(self.requests.get, None), metadata=identity(name), timeout=60)

    def send(self, request):
        self.requests.put(request)

    def take(self):
        return next(self.responses)

    def close(self):
        self.requests.put(None)
        self.responses.cancel()


def publish(platform=ANHUI, producer="python", epoch=1, opening=True):
    stub = publish_pb2_grpc.PublishServiceStub(channel)
    stream = Stream(stub.Publish, f"platform/{platform}")
    if opening:
        stream.send(publish_pb2.PublishRequest(
            open=publish_pb2.PublishOpen(producer=producer, epoch=epoch)))
        stream.opened = stream.take().opened
    return stream


def delta(n, revision, colour=delta_pb2.COLOUR_YELLOW, **changes):
    fields = dict(
        entity=b"python--" + n.to_bytes(8, "big"), revision=revision, committed_at_us=now_us(),
        provenance=0, health_code=delta_pb2.HealthCode(colour=colour))
    fields.update(changes)
    return delta_pb2.Delta(**{k: v for k, v in fields.items() if v is not None})


PROVENANCE = delta_pb2.Provenance(
    authority="CDC-340100", rule_id="AH-2022-07", rule_version=3, reason="接触者")


def batch(sequence, deltas, issuer=ANHUI, provenance=(PROVENANCE,)):
    return publish_pb2.PublishRequest(batch=publish_pb2.PublishBatch(
        sequence=sequence, issuer=issuer, provenance=provenance, deltas=deltas))


def subscribe(name="python", platform=SICHUAN, **start):
    stub = subscribe_pb2_grpc.SubscribeServiceStub(channel)
    stream = Stream(stub.Subscribe, f"platform/{platform}")
    stream.send(subscribe_pb2.SubscribeRequest(
        open=subscribe_pb2.SubscribeOpen(subscription=name, **start)))
    return stream


def error_info(error):
    """The reason, domain, field and retry delay that a failed call carries."""
    status = rpc_status.from_call(error)
    info, retry, violations = error_details_pb2.ErrorInfo(), None, []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [v.field for v in bad.field_violations]
    return info, retry, violations


def refused(what, action, reason, field=None, code=None):
    try:
        action()
    except grpc.RpcError as error:
        info, _, violations = error_info(error)
        assert info.reason == reason and info.domain == "hutong", (what, info)
        assert info.metadata["message_zh"], what
        if field:
            assert info.metadata["field"] == field and violations == [field], (what, info, violations)
        if code:
            assert error.code() == code, (what, error.code())
        print("refused as documented:", what, reason)
    else:
        raise AssertionError(f"{what} was not refused")


# Publish: three good deltas.
producer = publish()
assert producer.opened.last_durable_sequence == 0 and producer.opened.credit_bytes > 0
producer.send(batch(1, [delta(n, 1) for n in range(3)]))
ack = producer.take().ack
assert (ack.sequence, ack.accepted, len(ack.refused)) == (1, 3, 0), ack
print("published", ack.accepted)

# Refusals of single deltas: each with index, reason and field; the good one beside it goes through.
wrong = [
    ("revision zero", delta(10, 0), "REVISION_ZERO", "revision"),
    ("zero enum", delta(10, 1, colour=0), "ENUM_UNSPECIFIED", "health_code.colour"),
    ("short entity", delta(10, 1, entity=b"short"), "ENTITY_INVALID", "entity"),
    ("future time", delta(10, 1, committed_at_us=now_us() + 3600_000_000), "TIME_IN_FUTURE",
     "committed_at_us"),
    ("missing provenance", delta(10, 1, provenance=9), "PROVENANCE_MISSING", "provenance"),
    ("no value", delta(10, 1, health_code=None), "KIND_UNKNOWN", "value"),
]
for i, (what, bad, reason, field) in enumerate(wrong):
    producer.send(batch(2 + i, [bad, delta(20 + i, 1)]))
    ack = producer.take().ack
    assert ack.accepted == 1 and len(ack.refused) == 1, (what, ack)
    refusal = ack.refused[0]
    assert (refusal.index, refusal.error.reason, refusal.error.domain, refusal.error.field) == (
        0, reason, "hutong", f"deltas[0].{field}"), (what, refusal)
    print("refused as documented:", what, reason)
sequence = 2 + len(wrong)
producer.send(batch(sequence, [delta(1, 1)], issuer=SICHUAN))
assert producer.take().ack.error.reason == "ISSUER_NOT_YOURS"

# A snapshot, then what follows.
reader = subscribe(snapshot=subscribe_pb2.StartSnapshot())
rows, cursor = [], None
while cursor is None:
    message = reader.take()
    kind = message.WhichOneof("message")
    if kind == "snapshot_rows":
        for row in message.snapshot_rows.rows:
            provenance = message.snapshot_rows.provenance[row.delta.provenance]
            assert provenance.reason == "接触者" and row.issuer == ANHUI
            rows.append(row.delta.entity)
    elif kind == "snapshot_end":
        cursor = message.snapshot_end.cursor
assert len(rows) == len(set(rows)) == 3 + len(wrong), rows
print("snapshot of", len(rows))


def records(stream, count):
    """The next `count` deltas with the offset of each."""
    found = []
    while len(found) < count:
        message = stream.take()
        if message.WhichOneof("message") == "records":
            for logged in message.records.records:
                assert logged.record.issuer == ANHUI
                found += [(logged.offset, d) for d in logged.record.deltas]
    return found


for n in range(5):
    sequence += 1
    producer.send(batch(sequence, [delta(100 + n, 1, colour=delta_pb2.COLOUR_RED)]))
    assert producer.take().ack.accepted == 1
followed = records(reader, 5)
assert [d.entity[-1] for _, d in followed] == [100, 101, 102, 103, 104]
offset = followed[2][0]
applied = delta_pb2.Cursor(log_id=cursor.log_id, urgent=offset + 1, bulk=cursor.bulk)
reader.send(subscribe_pb2.SubscribeRequest(
    applied=subscribe_pb2.SubscribeApplied(cursor=applied)))
reader.send(subscribe_pb2.SubscribeRequest(credit=subscribe_pb2.SubscribeCredit(bytes=1000)))
while reader.take().WhichOneof("message") != "bookmark":
    pass
reader.close()

# Resumed exactly at that cursor.
reader = subscribe(cursor=applied)
assert [d.entity[-1] for _, d in records(reader, 2)] == [103, 104]
reader.close()
print("resumed at", offset + 1)

# Packed, for who takes it so; plain for others, and what is too small for it.
sequence += 1
producer.send(batch(sequence, [delta(200 + n, 1) for n in range(50)]))
assert producer.take().ack.accepted == 50
before = delta_pb2.Cursor(log_id=cursor.log_id, urgent=followed[-1][0] + 1, bulk=cursor.bulk)
plain = subscribe(name="plain", cursor=before)
packed = subscribe(name="packed", cursor=before, compressions=[subscribe_pb2.COMPRESSION_LZ4])
wanted = [d for _, d in records(plain, 50)]
message = packed.take()
while message.WhichOneof("message") != "records":
    message = packed.take()
[logged] = message.records.records
assert not logged.HasField("record") and len(logged.record_lz4) * 2 <= logged.record_bytes
unpacked = lz4.block.decompress(logged.record_lz4, uncompressed_size=logged.record_bytes)
assert list(delta_pb2.Record.FromString(unpacked).deltas) == wanted
sequence += 1
producer.send(batch(sequence, [delta(300, 1)]))
assert producer.take().ack.accepted == 1
assert [d.entity[-2:] for _, d in records(packed, 1)] == [(300).to_bytes(2, "big")]
plain.close()
packed.close()
print("packed", logged.record_bytes, "bytes as", len(logged.record_lz4))

# Questions.
query = query_pb2_grpc.QueryServiceStub(channel)
explained = query.Explain(
    query_pb2.ExplainRequest(entity=delta(100, 1).entity), metadata=identity("auditor/a"))
assert explained.colour == delta_pb2.COLOUR_RED and explained.decided_by_zh
admin = admin_pb2_grpc.AdminServiceStub(channel)
platforms = admin.ListPlatforms(
    admin_pb2.ListPlatformsRequest(), metadata=identity("operator/o")).platforms
assert ANHUI in [p.code for p in platforms]

# What a connector says of itself.
reports = report_pb2_grpc.ReportServiceStub(channel)


def report(who, connector="registry"):
    return reports.Report(report_pb2.ReportRequest(report=report_pb2.ConnectorReport(
        connector=connector, role=report_pb2.CONNECTOR_ROLE_SOURCE,
        state=report_pb2.CONNECTOR_STATE_RUNNING, since_us=int(time.time() * 1e6), dead_letters=3,
        dead_letters_added=[report_pb2.DeadLettersAdded(reason="VALUE_UNMAPPED", rows=3)])),
        metadata=identity(who))


report(f"platform/{ANHUI}")
said = admin.ListConnectors(
    admin_pb2.ListConnectorsRequest(), metadata=identity("auditor/a")).connectors
assert [(c.platform, c.report.connector, c.report.dead_letters, c.silent) for c in said] == [
    (ANHUI, "registry", 3, False)]

# Failed calls.
refused("a report of nobody", lambda: report("operator/o"), "ROLE_NOT_ALLOWED",
        code=grpc.StatusCode.PERMISSION_DENIED)
refused("a connector without a name", lambda: report(f"platform/{ANHUI}", connector="张三"),
        "NAME_INVALID", "report.connector")
other = delta_pb2.Cursor(log_id=cursor.log_id ^ 1, urgent=1, bulk=1)
ahead = delta_pb2.Cursor(log_id=cursor.log_id, urgent=10**9, bulk=1)
refused("no identity", lambda: query.GetEntity(query_pb2.GetEntityRequest(entity=b"x" * 16)),
        "IDENTITY_MISSING", code=grpc.StatusCode.UNAUTHENTICATED)
refused("unknown platform", lambda: publish(platform=999999), "IDENTITY_UNKNOWN",
        code=grpc.StatusCode.UNAUTHENTICATED)
refused("role", lambda: admin.TrimPartition(
    admin_pb2.TrimPartitionRequest(), metadata=identity("auditor/a")), "ROLE_NOT_ALLOWED",
    code=grpc.StatusCode.PERMISSION_DENIED)
refused("cursor of another log", lambda: subscribe(cursor=other).take(),
        "CURSOR_OF_ANOTHER_LOG", "open.cursor.log_id")
refused("cursor ahead", lambda: subscribe(cursor=ahead).take(), "CURSOR_AHEAD",
        "open.cursor.urgent", grpc.StatusCode.OUT_OF_RANGE)
refused("unknown issuer in a filter", lambda: subscribe(
    now=subscribe_pb2.StartNow(), filter=subscribe_pb2.Filter(issuers=[999999])).take(),
    "FILTER_INVALID", "filter.issuers[0]")
refused("compression not said", lambda: subscribe(
    now=subscribe_pb2.StartNow(), compressions=[0]).take(),
    "ENUM_UNSPECIFIED", "open.compressions")
refused("bad name", lambda: subscribe(name="NO", now=subscribe_pb2.StartNow()).take(),
        "NAME_INVALID", "open.subscription")
refused("epoch zero", lambda: publish(epoch=0), "EPOCH_ZERO", "open.epoch")
refused("fenced", lambda: (publish(producer="twice", epoch=5), publish(producer="twice", epoch=4)),
        "PRODUCER_FENCED", "open.epoch", grpc.StatusCode.ABORTED)


def gap():
    stream = publish(producer="gap")
    stream.send(batch(7, [delta(1, 9)]))
    stream.take()


refused("a gap in the sequence", gap, "SEQUENCE_OUT_OF_ORDER", "batch.sequence")
producer.close()
print("all well")
