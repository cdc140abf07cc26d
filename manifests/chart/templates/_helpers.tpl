{{- define "pristine.image" -}}
{{- with .Values.image -}}
{{- .repository -}}
{{- if .digest -}} @{{ .digest }} {{- else -}} :{{ .tag | default (print "v" $.Chart.AppVersion) }} {{- end -}}
{{- end -}}
{{- end -}}
