// What the server sends, as far as the page looks at it.

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Modality = "image" | "text";
export type Target = "auto" | Modality | "anchor";
export type Mode = "auto" | "sync" | "async" | "off";
export type Task = "retrieve" | "classify";

export interface Config {
  version: string;
  keys: { admin: boolean; api: boolean };
  default_gallery: string;
  preview_pixels: number;
  demo: { clips: boolean };
  corruptions: boolean;
  limits: {
    queries: number;
    items: number;
    k: number;
    text_characters: number;
    image_bytes: number;
    image_pixels: number;
    body_bytes: number;
    snapshot_bytes: number;
    audio_bytes: number;
    audio_seconds: number;
    labels: number;
    batch_size: number;
  };
}

/** As much of JSON Schema as settings of methods use. */
export interface SettingSchema {
  type?: string;
  anyOf?: SettingSchema[];
  enum?: string[];
  default?: Json;
  description?: string;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

export interface MethodCard {
  summary: string;
  settings: Record<string, SettingSchema>;
  presets: Record<string, Record<string, Json>>;
}

export interface Models {
  encoder: {
    name: string;
    fingerprint: string;
    dimension: number;
    dtype: string;
    device: string;
    image_size: [number, number];
    adaptable_parameters: Record<string, number>;
  };
  methods: Record<string, MethodCard>;
  default_method: string;
  default_gallery: string;
  classifier: {
    name: string;
    labels: string[];
    device: string;
    audio: Record<string, Json>;
    image_size: [number, number];
    methods: Record<string, MethodCard>;
    default_method: string;
  } | null;
  role: string;
  queue: { items: number; capacity: number };
}

export interface GalleryCard {
  name: string;
  items: number;
  targets: Partial<Record<Modality | "anchor", number>>;
  dimension: number;
  fingerprint: string;
  index: Record<string, Json>;
  created_at: number;
  generation: number;
  calibration: string | null;
  status: "ready" | "refused";
  why: string;
}

export interface Item {
  id: string;
  payload: Record<string, Json>;
  text: string | null;
  modalities: Modality[];
  preview?: string;
}

export interface ItemPage {
  items: Item[];
  total: number;
}

interface Part {
  observed: boolean;
  confidence: number;
}

export interface Hit {
  id: string;
  score: number;
  payload: Record<string, Json>;
  preview?: string;
  parts?: Partial<Record<Modality, Part>>;
}

export interface Adaptation {
  method: string;
  mode: string;
  direction: string;
  state_version: number | null;
  status: "applied" | "applying" | "queued" | "skipped" | "undone" | "off" | "mixed";
  reason: string;
  batch_size: number | null;
}

interface Timings {
  wait: number;
  encode: number;
  search: number;
  adapt: number;
  total: number;
}

export interface RetrieveAnswer {
  results: { hits: Hit[]; query?: { parts: Partial<Record<Modality, Part>>; novelty: number | null } }[];
  adaptation: Adaptation;
  timings_ms: Timings;
  gallery: string;
  stream: string;
}

export interface ClassifyAnswer {
  results: {
    id?: string;
    labels: { label: string; probability: number }[];
    entropy_nats: number;
    missing: string[];
    completed_by: string | null;
    /** 0 to 1; only where a calibration can tell. */
    novelty?: number | null;
  }[];
  adaptation: Adaptation;
  timings_ms: Timings;
  stream: string;
  model: string;
}

export type Figure =
  "modality_gap" | "modality_gap_target" | "uniformity" | "entropy_nats" | "source_likeness" | "shift" | "loss";

/** Columns of equal length, the oldest first. */
export interface History extends Partial<Record<Figure, (number | null)[]>> {
  at: number[];
  batch?: number[];
  version: number[];
  status: ("applied" | "skipped" | "undone")[];
}

export interface GuardEvent {
  time: number;
  stream: string;
  track: string;
  batch: number;
  finding: string;
  action: string;
  reason: string;
  figures: Record<string, number>;
}

export interface Track {
  gallery: string;
  direction: string;
  version: number;
  batches: number;
  applied: number;
  skipped: number;
  undone: number;
  shed: number;
  gathered: number;
  memory_size: number;
  state_bytes: number;
  last_reason: string;
  drift: Record<string, number> | null;
  losses: Record<string, number> | null;
  guard: {
    policy: string;
    batches: number;
    finding: string | null;
    cooldown_batches: number;
    good_version: number | null;
    figures: Record<string, number>;
    events: GuardEvent[];
    why?: string;
  };
  recent?: History;
}

export interface StreamCard {
  name: string;
  pinned: boolean;
  method: string;
  settings: Record<string, Json>;
  classify: { method: string; settings: Record<string, Json> } | null;
  guard: Record<string, Json>;
  calibrations: Record<string, { name: string; digest: string; warning: string }>;
  version: number;
  batches: number;
  created_at: number;
  last_seen: number;
  tracks: Track[];
  waiting?: number | null;
}

export interface SnapshotCard {
  stream: string;
  name: string;
  created_at: number;
  version: number;
  note: string;
  bytes?: number;
}

export interface ComparedSide {
  name: string | null;
  created_at: number;
  version: number;
  batches: number;
  method: string;
  settings: Record<string, Json>;
  classify: { method: string; settings: Record<string, Json> } | null;
}

export interface ComparedTrack {
  version: number;
  batches: number;
  applied: number;
  skipped: number;
  undone: number;
  drift: Record<string, number> | null;
  losses: Record<string, number> | null;
  distance_from_source: number | null;
  memory_size: number;
}

export interface Comparison {
  stream: string;
  first: ComparedSide;
  second: ComparedSide;
  tracks: Record<
    string,
    {
      in: "both" | "first" | "second";
      first: ComparedTrack | null;
      second: ComparedTrack | null;
      distance: number | null;
      parameters: { name: string; size: number; distance: number }[];
    }
  >;
}

export interface ServerFigures {
  at: number;
  version: string;
  ready: boolean;
  queue: { items: number; capacity: number };
  worker: Record<string, Json> | null;
  /** Alive at the last look; null: this process is the only one. */
  workers: number | null;
  streams_in_memory: number | null;
  streams: number;
}

interface CorruptionCard {
  name: string;
  group: string;
  summary?: string;
  severities: number[];
  available?: boolean;
  why?: string;
}

export interface Corruptions {
  image: CorruptionCard[];
  text: CorruptionCard[];
  audio: CorruptionCard[];
}

export interface Clip {
  id: string;
  label: string;
  audio: string;
  image: string;
}
