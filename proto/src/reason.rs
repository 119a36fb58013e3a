//! The catalogue of reasons: every error that a client can see, with what it may do about it.
//!
//! A refused delta carries a reason in its ack; a failed call carries it in its status details as
//! `google.rpc.ErrorInfo` (domain `hutong`), with the field as `google.rpc.BadRequest`.

use crate::{api, limits};
use std::{collections::HashMap, fmt, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every reason.
pub const DOMAIN: &str = "hutong";

/// Whether this can be the name of a reason, known or not: 1 to 64 of A-Z, 0-9 and underscore, the first a letter.
pub fn is_code(text: &str) -> bool {
    let plain = |b: u8| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_');
    text.len() <= limits::NAME_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.bytes().all(plain)
}

/// When a client is asked to try again later.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// May the same request be sent again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It will fail again until someone changes something.
    No,
    /// It may succeed later, unchanged.
    Later,
    /// Connect again and go on from what the broker says is durable.
    Reconnect,
}

/// What stands in the catalogue about a reason.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The stable name on the wire.
    pub code: &'static str,
    pub grpc: Code,
    pub retry: Retry,
    /// Nothing was changed by the request. When false, it may or may not have taken effect.
    pub free_of_side_effects: bool,
    pub text: &'static str,
    pub text_zh: &'static str,
}

macro_rules! catalogue {
    ($($name:ident $code:literal $grpc:ident $retry:ident $free:literal $text:literal $zh:literal;)*) => {
        /// Why something was refused. The order is not part of the interface, the names are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $text] $name,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            pub fn entry(self) -> Entry {
                match self {
                    $(Reason::$name => Entry {
                        code: $code,
                        grpc: Code::$grpc,
                        retry: Retry::$retry,
                        free_of_side_effects: $free,
                        text: $text,
                        text_zh: $zh,
                    },)*
                }
            }
        }
    };
}

catalogue! {
    IdentityMissing "IDENTITY_MISSING" Unauthenticated No true
        "the connection does not say who it is; set the metadata `hutong-identity`, such as `platform/340000`"
        "连接未表明身份；请设置元数据 hutong-identity，例如 platform/340000";
    IdentityUnknown "IDENTITY_UNKNOWN" Unauthenticated No true
        "this identity is not configured at the broker; register the platform in its configuration"
        "代理未配置该身份；请在其配置中登记平台";
    RoleNotAllowed "ROLE_NOT_ALLOWED" PermissionDenied No true
        "this identity's role may not do this"
        "该身份的角色无权执行此操作";
    OpenExpected "OPEN_EXPECTED" InvalidArgument No true
        "the first message of a stream must be `open`"
        "流的第一条消息必须是 open";
    OpenRepeated "OPEN_REPEATED" InvalidArgument No true
        "`open` is only allowed as the first message of a stream"
        "open 只能作为流的第一条消息";
    MessageMalformed "MESSAGE_MALFORMED" InvalidArgument No true
        "the bytes are not a valid protobuf message of this type"
        "字节不是该类型的有效 protobuf 消息";
    NameInvalid "NAME_INVALID" InvalidArgument No true
        "names have 1 to 64 characters of a-z, 0-9, dot, underscore and hyphen"
        "名称须为 1 至 64 个字符：a-z、0-9、点、下划线、连字符";
    EpochZero "EPOCH_ZERO" InvalidArgument No true
        "a producer's epoch starts at 1"
        "生产者的 epoch 从 1 开始";
    ProducerFenced "PRODUCER_FENCED" Aborted No true
        "a session of this producer with a higher epoch exists; another process publishes under this name"
        "该生产者已有更高 epoch 的会话；另一进程正以此名称发布";
    SessionTakenOver "SESSION_TAKEN_OVER" Aborted Reconnect true
        "another connection of the same client took this stream over"
        "同一客户端的另一连接已接管此流";
    SubscriptionTakenOver "SUBSCRIPTION_TAKEN_OVER" Aborted No true
        "another client subscribed under this name and receives what follows; stop one of the two, or give each its own name"
        "另一客户端以此名称订阅，后续数据由其接收；请停止其一，或各用其名";
    TooManyProducers "TOO_MANY_PRODUCERS" ResourceExhausted No true
        "the platform has as many producers as it may have; reuse the name of an old one"
        "该平台的生产者数量已达上限；请复用旧名称";
    CreditExceeded "CREDIT_EXCEEDED" ResourceExhausted Reconnect true
        "more bytes are under way than the broker gave credit for; wait for acks"
        "在途字节数超过代理给予的额度；请等待确认";
    ClientStalled "CLIENT_STALLED" Aborted Reconnect true
        "the client took nothing of what the broker had for it for too long; read while you send, and give back credit"
        "客户端长时间未接收代理发出的内容；请边发送边接收，并归还额度";
    SequenceOutOfOrder "SEQUENCE_OUT_OF_ORDER" FailedPrecondition Reconnect true
        "batches are numbered without gaps, from last_durable_sequence + 1"
        "批次须从 last_durable_sequence + 1 起连续编号";
    IssuerNotYours "ISSUER_NOT_YOURS" PermissionDenied No true
        "a platform may only publish what it issued itself"
        "平台只能发布本平台签发的数据";
    BatchTooLarge "BATCH_TOO_LARGE" InvalidArgument No true
        "a batch has at most 4 MiB; split it"
        "批次不得超过 4 MiB；请拆分";
    BatchTooManyDeltas "BATCH_TOO_MANY_DELTAS" InvalidArgument No true
        "a batch has at most 20,000 deltas; split it"
        "批次不得超过 20,000 条变更；请拆分";
    BatchTooManyProvenances "BATCH_TOO_MANY_PROVENANCES" InvalidArgument No true
        "a batch has at most 1,024 provenance entries; split it"
        "批次不得超过 1,024 条来源；请拆分";
    BatchEmpty "BATCH_EMPTY" InvalidArgument No true
        "a batch has at least one delta"
        "批次至少包含一条变更";
    DeltaTooLarge "DELTA_TOO_LARGE" InvalidArgument No true
        "a delta has at most 4 KiB"
        "一条变更不得超过 4 KiB";
    FieldUnknown "FIELD_UNKNOWN" InvalidArgument No true
        "this field is not known to the broker, and what is not understood is not passed on"
        "代理不认识该字段；不理解的内容不予转发";
    FieldRepeated "FIELD_REPEATED" InvalidArgument No true
        "this field may stand only once"
        "该字段只能出现一次";
    FieldMissing "FIELD_MISSING" InvalidArgument No true
        "this field is required"
        "该字段为必填";
    StringTooLong "STRING_TOO_LONG" InvalidArgument No true
        "the text is longer than its limit"
        "文本超过长度上限";
    StringNotUtf8 "STRING_NOT_UTF8" InvalidArgument No true
        "the text is not valid UTF-8"
        "文本不是有效的 UTF-8";
    EntityInvalid "ENTITY_INVALID" InvalidArgument No true
        "an entity has exactly 16 bytes, not all zero"
        "实体标识须恰为 16 字节且不全为零";
    RevisionZero "REVISION_ZERO" InvalidArgument No true
        "revisions start at 1"
        "修订号从 1 开始";
    RevisionNotNewer "REVISION_NOT_NEWER" FailedPrecondition No true
        "the register already has this or a later revision; nothing was changed"
        "该登记项已有相同或更新的修订；未作更改";
    TimeInFuture "TIME_IN_FUTURE" InvalidArgument Later true
        "the time is more than 5 minutes ahead of the broker's clock; set the source's clock"
        "时间比代理时钟超前 5 分钟以上；请校准源时钟";
    TimeImplausible "TIME_IMPLAUSIBLE" InvalidArgument No true
        "times are microseconds since the Unix epoch, between 2019 and 2100"
        "时间为自 Unix 纪元起的微秒数，须在 2019 年至 2100 年之间";
    ExpiryBeforeCommit "EXPIRY_BEFORE_COMMIT" InvalidArgument No true
        "a value cannot expire before it was committed"
        "有效期不能早于提交时间";
    KindUnknown "KIND_UNKNOWN" InvalidArgument No true
        "a delta carries exactly one value of a known kind"
        "一条变更须恰含一个已知类型的值";
    EnumUnspecified "ENUM_UNSPECIFIED" InvalidArgument No true
        "zero means unspecified and is always refused; map the source's value"
        "零表示未指定，一律拒绝；请映射源值";
    EnumUnknown "ENUM_UNKNOWN" InvalidArgument No true
        "this value is not in the vocabulary"
        "该值不在词汇表中";
    ValueOutOfRange "VALUE_OUT_OF_RANGE" InvalidArgument No true
        "the number is outside its range"
        "数值超出范围";
    ProvenanceMissing "PROVENANCE_MISSING" InvalidArgument No true
        "a delta refers to an entry of the batch's provenance table; without authority, rule and reason nothing is accepted"
        "变更须引用批次来源表中的条目；缺少机关、规则和理由一律不受理";
    TooManyProvenances "TOO_MANY_PROVENANCES" ResourceExhausted No true
        "the platform has brought as many different provenance entries as it may have; a reason is the text of a rule, the case belongs into the evidence"
        "该平台的不同来源条目数量已达上限；理由应为规则文本，个案信息请放入证据字段";
    PathInvalid "PATH_INVALID" InvalidArgument No true
        "an area's path has 1 to 6 parts of 1 to 1024 bytes without control characters"
        "区域路径须为 1 至 6 段，每段 1 至 1024 字节，不含控制字符";
    AreaEntityMismatch "AREA_ENTITY_MISMATCH" InvalidArgument No true
        "the entity of an area is the hash of its path"
        "区域的实体标识须为其路径的哈希";
    FilterInvalid "FILTER_INVALID" InvalidArgument No true
        "the filter names something that does not exist"
        "过滤条件指定了不存在的内容";
    FilterChanged "FILTER_CHANGED" FailedPrecondition No true
        "the stored cursor belongs to another filter; start with a snapshot, or under another subscription name"
        "所存游标属于另一过滤条件；请从快照开始，或更换订阅名称";
    CursorOfAnotherLog "CURSOR_OF_ANOTHER_LOG" FailedPrecondition No true
        "this cursor belongs to another log; start with a snapshot"
        "该游标属于另一日志；请从快照开始";
    CursorCompacted "CURSOR_COMPACTED" OutOfRange No true
        "records after this cursor are no longer kept; start with a snapshot"
        "该游标之后的记录已不再保留；请从快照开始";
    CursorAhead "CURSOR_AHEAD" OutOfRange No true
        "this cursor is beyond the end of the log; start with a snapshot"
        "该游标超出日志末尾；请从快照开始";
    CreditInvalid "CREDIT_INVALID" InvalidArgument No true
        "credit is between 64 KiB and 64 MiB in all"
        "额度总计须在 64 KiB 至 64 MiB 之间";
    TooManySubscriptions "TOO_MANY_SUBSCRIPTIONS" ResourceExhausted No true
        "the platform has as many subscriptions as it may have; delete one"
        "该平台的订阅数量已达上限；请删除一个";
    TooManySnapshots "TOO_MANY_SNAPSHOTS" ResourceExhausted Later true
        "as many snapshots as allowed are being sent; try again later"
        "正在发送的快照数量已达上限；请稍后再试";
    CheckpointInUse "CHECKPOINT_IN_USE" FailedPrecondition Later true
        "another backup is being carried away; wait for its end"
        "另一份备份正在复制；请等待其完成";
    PartitionUnknown "PARTITION_UNKNOWN" NotFound No true
        "no such partition: issuer, lane or shard is not configured"
        "无此分区：签发方、通道或分片未配置";
    TrimBeyondStored "TRIM_BEYOND_STORED" FailedPrecondition Later true
        "records that a restart would replay cannot be dropped yet"
        "重启后需重放的记录尚不能删除";
    SubscriptionUnknown "SUBSCRIPTION_UNKNOWN" NotFound No true
        "no such subscription"
        "无此订阅";
    SubscriptionConnected "SUBSCRIPTION_CONNECTED" FailedPrecondition No true
        "the subscription is connected; stop its client first"
        "该订阅正在连接；请先停止其客户端";
    DeltaNotFound "DELTA_NOT_FOUND" NotFound No true
        "no such delta, or it is older than what the broker keeps"
        "无此变更，或已超出代理的保留范围";
    LogPoisoned "LOG_POISONED" Unavailable Later true
        "the log failed to write or sync and takes nothing until it was reopened and checked"
        "日志写入或同步失败，重新打开并检查之前不再受理";
    CommitIndefinite "COMMIT_INDEFINITE" Unknown Reconnect false
        "the batch may or may not be durable; connect again and resend what is not"
        "该批次可能已持久化也可能没有；请重新连接并重发未持久化的部分";
    ShuttingDown "SHUTTING_DOWN" Unavailable Reconnect true
        "the broker is stopping; connect again"
        "代理正在停止；请重新连接";
    Internal "INTERNAL" Internal Later false
        "a defect in the broker; its log says more"
        "代理内部缺陷；详见其日志";
}

impl Reason {
    pub fn code(self) -> &'static str {
        self.entry().code
    }

    pub fn from_code(code: &str) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|r| r.code() == code)
    }

    pub fn retryable(self) -> bool {
        self.entry().retry != Retry::No
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A reason, the field at fault, and what was seen there. Never holds an entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// Path of the field, such as `deltas[3].revision`; empty when there is none.
    pub field: String,
    /// What was found, beyond the text of the catalogue; may be empty.
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, field: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            field: field.into(),
            detail: String::new(),
        }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Refusal {
        self.detail = detail.into();
        self
    }

    /// Puts a prefix before the field, such as `deltas[3]`.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Refusal {
        self.field = if self.field.is_empty() {
            prefix.to_owned()
        } else {
            format!("{prefix}.{}", self.field)
        };
        self
    }

    pub fn message(&self) -> String {
        let text = self.reason.entry().text;
        if self.detail.is_empty() {
            text.to_owned()
        } else {
            format!("{}: {text}", self.detail)
        }
    }

    pub fn to_api(&self) -> api::ErrorInfo {
        api::ErrorInfo {
            reason: self.reason.code().to_owned(),
            domain: DOMAIN.to_owned(),
            field: self.field.clone(),
            message: self.message(),
            retryable: self.reason.retryable(),
        }
    }

    pub fn to_status(&self) -> Status {
        let entry = self.reason.entry();
        let mut metadata = HashMap::from([
            ("message_zh".to_owned(), entry.text_zh.to_owned()),
            (
                "free_of_side_effects".to_owned(),
                entry.free_of_side_effects.to_string(),
            ),
        ]);
        let mut details = ErrorDetails::new();
        if !self.field.is_empty() {
            metadata.insert("field".to_owned(), self.field.clone());
            details.add_bad_request_violation(&self.field, self.message());
        }
        if self.reason.retryable() {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        details.set_error_info(entry.code, DOMAIN, metadata);
        Status::with_error_details(entry.grpc, self.to_string(), details)
    }

    /// The reason that a status of a broker carries, if it is one of ours.
    pub fn from_status(status: &Status) -> Option<Refusal> {
        let info = status.get_details_error_info()?;
        if info.domain != DOMAIN {
            return None;
        }
        Some(Refusal {
            reason: Reason::from_code(&info.reason)?,
            field: info.metadata.get("field").cloned().unwrap_or_default(),
            detail: String::new(),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if !self.field.is_empty() {
            write!(f, " at {}", self.field)?;
        }
        write!(f, ": {}", self.message())
    }
}

impl std::error::Error for Refusal {}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Refusal {
        Refusal::new(reason, "")
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        refusal.to_status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_is_found_by_its_code_and_has_both_texts() {
        let mut seen = HashSet::new();
        for reason in Reason::ALL {
            let entry = reason.entry();
            assert!(seen.insert(entry.code), "{} stands twice", entry.code);
            assert_eq!(Reason::from_code(entry.code), Some(*reason));
            assert!(entry.text.is_ascii() && !entry.text.is_empty());
            assert!(!entry.text_zh.is_ascii());
        }
    }

    #[test]
    fn a_status_carries_reason_field_and_retry() {
        let refusal = Refusal::new(Reason::TimeInFuture, "deltas[3].committed_at_us");
        let status = refusal.to_status();
        assert_eq!(Refusal::from_status(&status), Some(refusal));
        assert!(status.get_details_retry_info().is_some());
        let request = status.get_details_bad_request().expect("a violation");
        assert_eq!(
            request.field_violations[0].field,
            "deltas[3].committed_at_us"
        );
    }
}
