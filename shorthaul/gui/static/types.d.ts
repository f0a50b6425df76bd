// What session.py sends, for the type checker only: the page is plain JavaScript and needs no build step.
export {};
declare global {
  interface Totals {
    bytes: number; read: number; written: number; eager: number | null; bound: number; kernels: number; calls: number;
    predicted: number; saved: number; peak: number; measured: Measured | null;
  }
  interface Measured { median: number; low: number; high: number; runs: number; threads: number; device: string }
  interface Badge { ok: boolean | null; text: string; done: boolean; word: string }
  interface StateInfo {
    id: number; parent: number | null; step: string; kind: string; form: string; check: Badge | null; totals: Totals; made: number[];
  }
  interface OverlayInfo { name: string; title: string; description: string; kind: string; unit: string; aggregate: string }
  interface Describe {
    version: number; session: string; earlier: { step: string; steps: number; bytes: number; when: number } | null; name: string; current: number; states: StateInfo[]; overlays: OverlayInfo[]; machine: string; machines: string[]; devices: Record<string, string>; device: string;
    undo: boolean; tunes: boolean; redo: number | null; job: string; transformations: { name: string; level: number; summary: string }[];
  }
  interface GraphNode {
    id: number; ref: string; label: string; kind: string; phase: string; module: string; ops: string[]; bytes: number; source: string; lines: string[];
    shape: string; inner: boolean; parent?: number; body?: string;
  }
  interface Graph {
    name: string; form: string; state: number; version: number; nodes: GraphNode[];
    edges: [number, number, number, number, number][];
  }
  interface OverlayValues { overlay: string; values: Record<string, number | string>; error: string }
  interface PlaceInfo {
    transformation: string; level: number; parameters: Record<string, unknown>; where: Record<string, string>; text: string;
    saves: number | null; at_stake: number; reason: string; nodes: number[];
  }
  interface MemletInfo {
    side: string; connector: string; container: string; dtype: string; shape: string[]; strides: string[] | null; role: string;
    alias: string | null; subset: string; bytes: number; again: number; exact: boolean; others: string[];
  }
  interface OriginInfo { module: string; operator: string; source: string; file: string; line: number; lines: [number, string][] }
  interface NodeDetails {
    id: number; ref: string; label: string; kind: string; phase: string; module: string; inside: string; bytes: number; flops: number | null;
    predicted: number | null; bound: string | null; measured: number | null; error: number | null; memlets: MemletInfo[];
    origins: OriginInfo[]; text: string; code: { language: string; text: string }[]; places: PlaceInfo[];
  }
  interface ModuleDetails {
    module: string; kernels: number; bytes: number; phases: Record<string, number>; predicted: number; measured: number | null;
    alike: string[]; saved: [string, number][]; inputs: { container: string; bytes: number; shape: string[]; role: string }[];
    nodes: { id: number; label: string; phase: string; ref: string; bytes: number }[];
  }
  interface Body { kind: string; title?: string; ranges?: string; schedule?: string; locals?: string[]; items?: Body[]; lines?: string[] }
  interface CostRow {
    id: number; label: string; module: string; phase: string; kind: string; bytes: number; share: number; flops: number | null;
    predicted: number | null; measured: number | null;
  }
  interface RooflineInfo {
    machine: string; bandwidth: number; peak: number; contraction: number; without: number;
    points: { id: number; name: string; bytes: number; flops: number; predicted: number; bound: string; measured: number | null }[];
  }
  interface MemoryInfo {
    at: number[]; ids: number[]; phases: string[]; saved: number; peak: Record<string, number>;
    tensors: { name: string; bytes: number; first: number; last: number; saved: boolean }[];
  }
  interface DiffInfo {
    before: StateInfo; after: StateInfo; recipe: string;
    modules: { module: string; before: number; after: number; kernels_before: number; kernels_after: number }[];
    removed: CostRow[]; added: CostRow[];
  }
  interface PreviewInfo { before: Totals; after: Totals; removed: number[]; text_before: string; text_after: string; check: string }

  /** An item of the hierarchy: a module in one phase, or a node. */
  interface Item {
    index: number; key: string; column: number; parent: number; depth: number; path: string; label: string; children: number[];
    node: number; body: boolean; count: number; bytes: number; first: number; last: number; order: number;
  }
  interface LayoutItem { i: number; parent: number; column: number; path: string; w: number; h: number; open: boolean }
  interface LayoutInput { items: LayoutItem[]; edges: [number, number, number][]; serial: number }
  interface LayoutOutput {
    serial: number; boxes: Float64Array; width: number; height: number; middle: number; routes: Map<number, number[]>; seconds: number;
  }

  /** A line of an open kernel. */
  interface Row { depth: number; kind: string; text: string }
  /** What is drawn. kinds: 0 a node, 1 a closed module, 2 an open one. edges: `style` is kind (0 forward, 1 backward, 2 saved, 3 across) times the number of widths, plus the width. */
  interface Scene {
    boxes: Float64Array; width: number; height: number; middle: number; kinds: Uint8Array; depth: Uint8Array; titles: string[]; unders: string[];
    paths: string[]; rows: Map<number, Row[]>;
    edges: { from: Int32Array; to: Int32Array; style: Uint8Array; starts: Int32Array; bounds: Float32Array; points: Float32Array };
  }
  interface PaintColors { palette: string[]; inks: string[]; of: Uint16Array; marked: Uint8Array }
  interface Frame {
    serial: number; x: number; y: number; k: number; w: number; h: number; ratio: number; selected: number; hovered: number; showSaved: boolean;
    small: { k: number; x: number; y: number; w: number; h: number };
  }
  interface PaintMessage {
    surface?: { canvas: HTMLCanvasElement | OffscreenCanvas; minimap: HTMLCanvasElement | OffscreenCanvas }; ink?: Record<string, string>;
    scene?: Scene; colors?: PaintColors; frame?: Frame;
  }
  interface PaintAnswer { painted: number; ms: number; nodes: number; edges: number }
  interface Window { studio: unknown }
}
