//! The 31 provinces and XPCC: the platforms of the demo, with the population that sets their load.

/// A provincial platform.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// GB/T 2260.
    pub code: u32,
    pub name: &'static str,
    pub name_zh: &'static str,
    /// As it stands in the published lists of risk areas.
    pub province: &'static str,
    /// Hundred thousands of people, census of 2020.
    pub people_100k: u32,
}

const fn place(
    code: u32,
    name: &'static str,
    name_zh: &'static str,
    province: &'static str,
    people_100k: u32,
) -> Place {
    Place {
        code,
        name,
        name_zh,
        province,
        people_100k,
    }
}

pub const ANHUI: u32 = 340_000;
pub const SICHUAN: u32 = 510_000;
pub const SHANGHAI: u32 = 310_000;
pub const FUJIAN: u32 = 350_000;

/// Those of the stories first, so that a small demo has them, then by population. XPCC's people are
/// part of Xinjiang's in the census; its figure here is only a weight.
pub const PLACES: [Place; 32] = [
    place(ANHUI, "Anhui", "安徽", "安徽省", 610),
    place(SICHUAN, "Sichuan", "四川", "四川省", 837),
    place(SHANGHAI, "Shanghai", "上海", "上海市", 249),
    place(FUJIAN, "Fujian", "福建", "福建省", 415),
    place(440_000, "Guangdong", "广东", "广东省", 1260),
    place(370_000, "Shandong", "山东", "山东省", 1015),
    place(410_000, "Henan", "河南", "河南省", 994),
    place(320_000, "Jiangsu", "江苏", "江苏省", 847),
    place(130_000, "Hebei", "河北", "河北省", 746),
    place(430_000, "Hunan", "湖南", "湖南省", 664),
    place(330_000, "Zhejiang", "浙江", "浙江省", 646),
    place(420_000, "Hubei", "湖北", "湖北省", 578),
    place(450_000, "Guangxi", "广西", "广西壮族自治区", 501),
    place(530_000, "Yunnan", "云南", "云南省", 472),
    place(360_000, "Jiangxi", "江西", "江西省", 452),
    place(210_000, "Liaoning", "辽宁", "辽宁省", 426),
    place(610_000, "Shaanxi", "陕西", "陕西省", 395),
    place(520_000, "Guizhou", "贵州", "贵州省", 386),
    place(140_000, "Shanxi", "山西", "山西省", 349),
    place(500_000, "Chongqing", "重庆", "重庆市", 321),
    place(230_000, "Heilongjiang", "黑龙江", "黑龙江省", 319),
    place(650_000, "Xinjiang", "新疆", "新疆维吾尔自治区", 259),
    place(620_000, "Gansu", "甘肃", "甘肃省", 250),
    place(220_000, "Jilin", "吉林", "吉林省", 241),
    place(150_000, "Inner Mongolia", "内蒙古", "内蒙古自治区", 240),
    place(110_000, "Beijing", "北京", "北京市", 219),
    place(120_000, "Tianjin", "天津", "天津市", 139),
    place(460_000, "Hainan", "海南", "海南省", 101),
    place(640_000, "Ningxia", "宁夏", "宁夏回族自治区", 72),
    place(630_000, "Qinghai", "青海", "青海省", 59),
    place(540_000, "Tibet", "西藏", "西藏自治区", 36),
    place(660_000, "XPCC", "新疆兵团", "新疆生产建设兵团", 32),
];

/// The first `n` platforms.
pub fn first(n: usize) -> &'static [Place] {
    &PLACES[..n]
}

/// Each platform's part of the load; the parts add up to 1.
pub fn shares(places: &[Place]) -> Vec<f64> {
    let all: u32 = places.iter().map(|p| p.people_100k).sum();
    places
        .iter()
        .map(|p| f64::from(p.people_100k) / f64::from(all))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::Issuer;
    use std::collections::HashSet;

    #[test]
    fn every_platform_is_there_once_with_a_valid_code() {
        let codes: HashSet<u32> = PLACES.iter().map(|p| p.code).collect();
        assert_eq!(codes.len(), PLACES.len());
        assert!(codes.iter().all(|c| Issuer::new(*c).is_some()));
        let provinces: HashSet<&str> = PLACES.iter().map(|p| p.province).collect();
        assert_eq!(provinces.len(), PLACES.len());
    }

    #[test]
    fn a_demo_of_four_has_the_places_of_the_stories() {
        let codes: Vec<u32> = first(4).iter().map(|p| p.code).collect();
        assert_eq!(codes, [ANHUI, SICHUAN, SHANGHAI, FUJIAN]);
    }

    #[test]
    fn the_largest_province_has_the_largest_share() {
        let shares = shares(&PLACES);
        let sum: f64 = shares.iter().sum();
        assert!((sum - 1.0).abs() < 1e-9);
        let guangdong = PLACES
            .iter()
            .position(|p| p.code == 440_000)
            .expect("there");
        assert!(shares.iter().all(|s| *s <= shares[guangdong]));
        assert!((shares[guangdong] - 0.089).abs() < 0.002);
    }
}
