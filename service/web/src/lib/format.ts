// Numbers and times for people.

const MISSING = "–";

/** Three significant digits: 0.0123, 4.57, 812. */
export function figure(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(digits - 1);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return value.toFixed(Math.min(decimals, 6));
}

/** A share of 1 as percent: 0.123 is "12.3 %". */
export function percent(share: number | null | undefined, decimals = 1): string {
  if (share === null || share === undefined || !Number.isFinite(share)) return MISSING;
  return `${(share * 100).toFixed(decimals)} %`;
}

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? MISSING : value.toLocaleString("en-US");
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return MISSING;
  if (value < 1024) return `${value} B`;
  if (value < 1024 ** 2) return `${figure(value / 1024)} KiB`;
  return `${figure(value / 1024 ** 2)} MiB`;
}

/** How long ago, from seconds since 1970. */
export function ago(at: number, now: number = Date.now() / 1000): string {
  const seconds = Math.max(0, now - at);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** The time of day, with the date where that is not today's. */
export function moment(at: number): string {
  const time = new Date(at * 1000);
  const today = new Date().toDateString() === time.toDateString();
  return today ? time.toLocaleTimeString() : time.toLocaleString();
}

/** `gaussian_noise` as "gaussian noise". */
export const words = (name: string): string => name.replaceAll("_", " ");
