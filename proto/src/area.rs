//! An area's entity is the hash of its full administrative path; the first part is one of the provinces.

use crate::ids::EntityId;
use sha2::{Digest, Sha256};

/// Joins the parts of a path; it cannot stand in a part.
pub const SEPARATOR: u8 = 0x1f;

/// The 31 provinces and XPCC: code after GB/T 2260, and the name that the published lists of risk areas use.
pub const PROVINCES: [(u32, &str); 32] = [
    (110_000, "北京市"),
    (120_000, "天津市"),
    (130_000, "河北省"),
    (140_000, "山西省"),
    (150_000, "内蒙古自治区"),
    (210_000, "辽宁省"),
    (220_000, "吉林省"),
    (230_000, "黑龙江省"),
    (310_000, "上海市"),
    (320_000, "江苏省"),
    (330_000, "浙江省"),
    (340_000, "安徽省"),
    (350_000, "福建省"),
    (360_000, "江西省"),
    (370_000, "山东省"),
    (410_000, "河南省"),
    (420_000, "湖北省"),
    (430_000, "湖南省"),
    (440_000, "广东省"),
    (450_000, "广西壮族自治区"),
    (460_000, "海南省"),
    (500_000, "重庆市"),
    (510_000, "四川省"),
    (520_000, "贵州省"),
    (530_000, "云南省"),
    (540_000, "西藏自治区"),
    (610_000, "陕西省"),
    (620_000, "甘肃省"),
    (630_000, "青海省"),
    (640_000, "宁夏回族自治区"),
    (650_000, "新疆维吾尔自治区"),
    (660_000, "新疆生产建设兵团"),
];

/// The first 16 bytes of SHA-256 over the parts joined by [`SEPARATOR`].
pub fn entity<'a>(path: impl IntoIterator<Item = &'a str>) -> EntityId {
    let mut hash = Sha256::new();
    for (i, part) in path.into_iter().enumerate() {
        if i > 0 {
            hash.update([SEPARATOR]);
        }
        hash.update(part.as_bytes());
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    EntityId(id)
}
