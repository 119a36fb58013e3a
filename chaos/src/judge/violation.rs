//! What a checker can find, and why a verdict is not PASS: each kind with a name for programs and a text in
//! both languages.

use crate::{
    clients::Register,
    history::Stream,
    text::{Text, kinds},
};

kinds! {
    /// Of an invariant.
    Violation {
        // INV-1: what was acknowledged is not there.
        AcknowledgedIsMissing { issuer: u32, stream: Stream, revision: u64 } = "acknowledged-is-missing",
            "{issuer} ({stream}): revision {revision} was acknowledged and is not there",
            "{issuer}（{stream}）：修订号 {revision} 已确认，但日志中不存在";
        ClientGaveUp { who: String, error: Text } = "client-gave-up",
            "{who} gave up: {error}",
            "{who} 放弃：{error}";
        // INV-2: what came is not what was published.
        OwnRecordCame { who: String, offset: u64 } = "own-record-came",
            "{who} got its own record at {offset}",
            "{who} 在位置 {offset} 收到了自己发布的记录";
        PoisonWasTaken { what: Text } = "poison-was-taken",
            "a poison batch was taken: {what}",
            "有毒批次被接受：{what}";
        NobodyPublished { who: String, revision: u64, issuer: u32, stream: Stream, offset: u64 } = "nobody-published",
            "{who} got revision {revision} of {issuer} ({stream}) at {offset}, which nobody published",
            "{who} 收到 {issuer}（{stream}）的修订号 {revision}（位置 {offset}），但无人发布过";
        RefusedCame { who: String, revision: u64, issuer: u32, stream: Stream, offset: u64 } = "refused-came",
            "{who} got revision {revision} of {issuer} ({stream}) at {offset}, which was refused",
            "{who} 收到 {issuer}（{stream}）的修订号 {revision}（位置 {offset}），但它已被拒绝";
        SoundRefused { issuer: u32, stream: Stream, revision: u64, reason: String } = "sound-refused",
            "revision {revision} of {issuer} ({stream}) has no fault and was refused: {reason}",
            "{issuer}（{stream}）的修订号 {revision} 并无错误，却被拒绝：{reason}";
        ContentDiffers { who: String, offset: u64, issuer: u32 } = "content-differs",
            "{who}: the record at {offset} does not say what {issuer} published",
            "{who}：位置 {offset} 的记录与 {issuer} 发布的内容不符";
        SnapshotContentDiffers { who: String } = "snapshot-content-differs",
            "{who}: rows of a snapshot do not say what was published",
            "{who}：快照中的行与发布的内容不符";
        AlienCame { who: String, offset: u64, what: Text } = "alien-came",
            "{who} got at {offset} what no client made: {what}",
            "{who} 在位置 {offset} 收到并非任何客户端产生的内容：{what}";
        TableContentDiffers { who: Text, rows: u32 } = "table-content-differs",
            "{who}: {rows} rows are not what was published",
            "{who}：{rows} 行与发布的内容不符";
        // INV-3: a hole, or damage that is served.
        Hole { issuer: u32, stream: Stream, revision: u64, last: u64 } = "hole",
            "{issuer} ({stream}): revision {revision} is not there, but later ones up to {last} are",
            "{issuer}（{stream}）：修订号 {revision} 缺失，而其后直至 {last} 的修订存在";
        ServesDamage { fault: Text } = "serves-damage",
            "the broker serves damaged data ({fault})",
            "互通提供了已损坏的数据（{fault}）";
        DidNotRefuse { fault: Text } = "did-not-refuse",
            "the broker did not refuse to start ({fault})",
            "互通未拒绝启动（{fault}）";
        // INV-4: back.
        WentBack { who: Text, register: Register, from: u64, to: u64 } = "went-back",
            "{who}: {register} went back from revision {from} to {to}",
            "{who}：{register} 的修订号从 {from} 回退到 {to}";
        // INV-5: not once.
        TwiceInLog { revision: u64, issuer: u32, stream: Stream, offset: u64 } = "twice-in-log",
            "revision {revision} of {issuer} ({stream}) is in the log twice, again at {offset}",
            "{issuer}（{stream}）的修订号 {revision} 在日志中出现两次，第二次位于 {offset}";
        CameTwice { who: String, revision: u64, issuer: u32, stream: Stream, offset: u64 } = "came-twice",
            "{who}: revision {revision} of {issuer} ({stream}) came twice, again at {offset}",
            "{who}：{issuer}（{stream}）的修订号 {revision} 收到两次，第二次位于 {offset}";
        RegisterTwice { who: Text, register: Register } = "register-twice",
            "{who}: {register} stands twice",
            "{who}：{register} 出现两次";
        RowsDoNotFitCursor { who: Text, count: usize, first: Text } = "rows-do-not-fit-cursor",
            "{who}: {count} rows do not fit its cursor: {first}",
            "{who}：{count} 行与其游标不符：{first}";
        // INV-6: not equal in the end.
        LogNotReadAgain {} = "log-not-read-again",
            "the log could not be read again to its end: the broker did not come back",
            "无法将日志重新读到末尾：互通未恢复";
        NoSnapshotReadAgain {} = "no-snapshot-read-again",
            "no snapshot of the state could be read to its end",
            "无法将状态快照读到末尾";
        DidNotConverge {} = "did-not-converge",
            "some subscriber did not get all that was acknowledged, in the time that it had",
            "有订阅方未能在规定时间内收到全部已确认的内容";
        ViewDiffers { who: Text, count: usize, first: Text } = "view-differs",
            "{who} differs from the log in {count} registers: {first}",
            "{who} 与日志有 {count} 个登记项不同：{first}";
        EndsEarly { who: String, lane: Stream, got: Text, log: Text } = "ends-early",
            "{who} got {lane} up to {got}, and the log goes on to {log}",
            "{who} 的{lane}仅收到 {got}，而日志直至 {log}";
        SnapshotHasNoEnd { who: String } = "snapshot-has-no-end",
            "{who}: the snapshot has no end",
            "{who}：快照没有结尾";
        TableNeverSeen {} = "table-never-seen",
            "the sink's table was never seen",
            "从未读到下游的表";
        AreaDiffers { area: String, listed: Text, found: Text } = "area-differs",
            "{area}: the list says {listed}, the table {found}",
            "{area}：名单为 {listed}，表中为 {found}";
        LastListIsEmpty {} = "last-list-is-empty",
            "the last list has no area in it",
            "最后一份名单中没有任何区域";
        AreasNeverCompared {} = "areas-never-compared",
            "the areas of the sink's table were never compared with the lists",
            "下游表中的区域从未与名单比对";
        // INV-7: not from the cursor on.
        RecordWithinSnapshot { who: String } = "record-within-snapshot",
            "{who}: a record within a snapshot",
            "{who}：快照当中出现记录";
        LeftOut { who: String, came: u64, next: u64 } = "left-out",
            "{who}: {came} came where {next} was to come: something was left out",
            "{who}：收到 {came}，应为 {next}：有内容被遗漏";
        CameAgain { who: String, came: u64 } = "came-again",
            "{who}: {came} came again, or was not to come at all",
            "{who}：{came} 重复到达，或本不应到达";
        // INV-8: not the same for all.
        OtherThanLog { who: String, offset: u64 } = "other-than-log",
            "{who}: the record at {offset} is not the one that the log has there",
            "{who}：位置 {offset} 的记录与日志中的不同";
        NotInLog { who: String, offset: u64 } = "not-in-log",
            "{who}: the record at {offset} was delivered and is not in the log",
            "{who}：位置 {offset} 的记录已投递，但不在日志中";
        // INV-9 and INV-10: out of bounds.
        BoundBroken { what: Text, seen: Text, bound: Text } = "bound-broken",
            "{what}: {seen}, promised {bound}",
            "{what}：实测 {seen}，承诺 {bound}";
        // INV-11: an end, or none.
        EndedUnasked { name: String, at: String, code: Text, signal: Text } = "ended-unasked",
            "{name} ended after {at} s with code {code} and signal {signal}, which no fault asked for",
            "{name} 在 {at} 秒时结束（退出码 {code}，信号 {signal}），并非任何故障所致";
        DidNotStop { fault: Text } = "did-not-stop",
            "the broker did not stop by itself with code 3 ({fault})",
            "互通未以退出码 3 自行停止（{fault}）";
        // INV-12: times.
        TimeFell { offset: u64, us: u64 } = "time-fell",
            "the record at {offset} is older by {us} millionths of a second than one before it",
            "位置 {offset} 的记录比其前的记录早 {us} 微秒";
    }
}

kinds! {
    /// Why a verdict is not PASS.
    Reason {
        InvariantBroken { number: usize, invariant: Text, count: u64, first: Text } = "invariant-broken",
            "INV-{number}, {invariant}: {count} violations; {first}",
            "INV-{number}，{invariant}：{count} 处违反；{first}";
        StopCondition { at: String, why: Text } = "stop-condition",
            "a stop condition was met after {at} s: {why}",
            "{at} 秒时触发停止条件：{why}";
        PromiseBroken { what: Text, seen: Text, bound: Text } = "promise-broken",
            "{what}: {seen}, promised {bound}",
            "{what}：实测 {seen}，承诺 {bound}";
        HistoryIsCut {} = "history-is-cut",
            "the history ends before the drill does",
            "历史记录不完整，演练未结束";
        ClientsStoodStill { seconds: String } = "clients-stood-still",
            "the drill's own clients stood still for {seconds} s: what was measured says nothing",
            "演练自身的客户端停顿 {seconds} 秒，测量无效";
        NothingAcknowledged {} = "nothing-acknowledged",
            "nothing was acknowledged, so nothing could be lost",
            "没有任何确认，无从判断";
        StoppedTooSoon { why: Text } = "stopped-too-soon",
            "a stop condition was met before anything was broken: {why}",
            "尚未破坏任何内容即触发停止条件：{why}";
        BoundSawNothing { what: Text, seen: Text } = "bound-saw-nothing",
            "a promised bound saw nothing; {what}: {seen}",
            "承诺的上限未得到检验；{what}：{seen}";
        NoSteadyState { what: Text, seen: Text, bound: Text } = "no-steady-state",
            "no steady state before the first fault; {what}: {seen}, promised {bound}",
            "首个故障前未达稳态；{what}：实测 {seen}，承诺 {bound}";
        FaultFailed { fault: Text, why: Text } = "fault-failed",
            "no proof that the fault happened ({fault}): it failed: {why}",
            "没有故障发生的证据（{fault}）：注入失败：{why}";
        FaultNeverBegan { fault: Text } = "fault-never-began",
            "no proof that the fault happened ({fault}): it never began",
            "没有故障发生的证据（{fault}）：未曾开始";
        ProofIsMissing { fault: Text, what: Text, seen: Text } = "proof-is-missing",
            "no proof that the fault happened ({fault}): {what}: {seen}",
            "没有故障发生的证据（{fault}）：{what}：{seen}";
        FaultNotUndone { fault: Text } = "fault-not-undone",
            "no proof that the fault happened ({fault}): it was not undone",
            "没有故障发生的证据（{fault}）：未能解除";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Told, tests::are_whole};

    #[test]
    fn each_kind_has_its_own_name_and_both_languages_with_the_same_figures() {
        let violations: Vec<Told> = Violation::samples().iter().map(Violation::told).collect();
        are_whole(Violation::KINDS, &violations);
        let reasons: Vec<Told> = Reason::samples().iter().map(Reason::told).collect();
        are_whole(Reason::KINDS, &reasons);
    }
}
