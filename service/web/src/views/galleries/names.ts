// The rules that the server has for names and ids, told while they are typed.

const GALLERY_NAME = /^[a-z0-9](?:\.?[a-z0-9_-])*\.?$/;
const LONGEST_NAME = 64;
export const LONGEST_ID = 512;

/** What is wrong with the name of a new gallery; "" for nothing. */
export function nameProblem(name: string, taken: readonly string[]): string {
  if (name === "") return "";
  if (name.length > LONGEST_NAME) return `At most ${LONGEST_NAME} characters; these are ${name.length}.`;
  if (/[A-Z]/.test(name)) return "Lower-case letters only.";
  if (/\s/.test(name)) return "No blanks; “-” or “_” instead.";
  if (!/^[a-z0-9]/.test(name)) return "It starts with a letter or a digit.";
  if (name.includes("..")) return "No two dots in a row.";
  if (!GALLERY_NAME.test(name)) return "Letters, digits, “.”, “_” and “-” only.";
  if (taken.includes(name)) return "There is a gallery of this name already.";
  return "";
}

/** `wanted`, or the first of "cat-2.png", "cat-3.png" … that is not taken. */
export function uniqueId(wanted: string, taken: ReadonlySet<string>): string {
  if (!taken.has(wanted)) return wanted;
  const dot = wanted.lastIndexOf(".");
  const [stem, end] = dot > 0 ? [wanted.slice(0, dot), wanted.slice(dot)] : [wanted, ""];
  for (let number = 2; ; number++) {
    const id = `${stem}-${number}${end}`;
    if (!taken.has(id)) return id;
  }
}
