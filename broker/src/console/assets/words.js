// The two languages. A key without a word shows itself, so that nothing is silently empty.

const LANGUAGES = ["en", "zh"];
const dictionaries = {};
let language = "en";

export async function load() {
  const asked = localStorage.getItem("hutong-language");
  language = LANGUAGES.includes(asked) ? asked : navigator.language.startsWith("zh") ? "zh" : "en";
  await Promise.all(LANGUAGES.map(async (name) => {
    dictionaries[name] = await (await fetch(`words.${name}.json`)).json();
  }));
}

export function current() {
  return language;
}

export function change() {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("hutong-language", language);
}

// The word for a key; {name} in it is taken from `values`.
export function t(key, values) {
  const word = dictionaries[language]?.[key] ?? key;
  return word.replace(/\{(\w+)\}/g, (_, name) => values?.[name] ?? "");
}

// One of two texts that an answer brings along.
export function either(english, chinese) {
  return language === "zh" && chinese ? chinese : english;
}
