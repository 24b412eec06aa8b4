import { Preview } from "../../components/preview.tsx";
import type { Item } from "../../lib/types.ts";
import { payloadLine } from "./words.ts";

interface Props {
  items: readonly Item[];
  selected: ReadonlySet<string>;
  choose: (id: string, on: boolean) => void;
  open: (item: Item) => void;
}

export function Grid({ items, selected, choose, open }: Props) {
  return (
    <ul class="galleries-grid">
      {items.map((item) => (
        <li key={item.id} class={selected.has(item.id) ? "galleries-tile chosen" : "galleries-tile"}>
          <button type="button" class="galleries-open" aria-label={`Open ${item.id}`} onClick={() => open(item)}>
            <Preview path={item.preview} text={item.text ?? item.id} />
            <span class="galleries-id">{item.id}</span>
            {item.preview && item.text && <span class="galleries-text">{item.text}</span>}
            <span class="galleries-payload">{payloadLine(item)}</span>
          </button>
          <label class="galleries-pick">
            <input
              type="checkbox"
              aria-label={`Select ${item.id}`}
              checked={selected.has(item.id)}
              onChange={(event) => choose(item.id, event.currentTarget.checked)}
            />
          </label>
        </li>
      ))}
    </ul>
  );
}
